"""docker-compose.yml fits the Compose schema, the settings, the Dockerfile and our rules; no engine is needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from app.queue import QUEUES
from app.settings import Settings
from tests.containers import compose, dockerfile

FILLED = {name: f"given{number}" for number, name in enumerate(compose.required())}
TREE = yaml.safe_load(compose.TEXT)
SERVICES = compose.services(FILLED)
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
SCHEMA = Draft202012Validator(json.loads((compose.ROOT / "tests/containers/compose-spec.json").read_text()))
SETTINGS = {
    str(field.validation_alias or f"{Settings.model_config['env_prefix']}{name}".upper())
    for name, field in Settings.model_fields.items()
}
every_service = pytest.mark.parametrize("name", SERVICES)
every_service_of_ours = pytest.mark.parametrize("name", OURS)


def test_the_file_is_what_compose_understands() -> None:
    SCHEMA.validate(TREE)


def test_a_misspelt_key_would_be_noticed() -> None:
    api = {**TREE["services"]["api"], "read_onyl": True}
    with pytest.raises(ValidationError, match="read_onyl"):
        SCHEMA.validate({**TREE, "services": {"api": api}})


@pytest.mark.parametrize("name", compose.required())
def test_without_a_secret_nothing_starts_and_a_sentence_says_which(name: str) -> None:
    with pytest.raises(compose.VariableMissing, match=f"set {name} in .env"):
        compose.services({key: value for key, value in FILLED.items() if key != name})


def test_the_head_of_the_file_lists_every_required_variable() -> None:
    head = compose.TEXT.partition("\nname:")[0]
    assert set(re.findall(r"\b(?:EXPUNGE|POSTGRES|REDIS)_[A-Z_]+", head)) == set(compose.required())


def test_no_secret_has_a_default() -> None:
    assert not [name for name in compose.defaulted() if re.search("KEY(?!_BACKUP_DAYS)|PASSWORD|SECRET|TOKEN", name)]


@every_service_of_ours
def test_every_variable_is_a_setting(name: str) -> None:
    assert set(OURS[name].get("environment", {})) <= SETTINGS | {"PYTHONPATH"}


def test_the_servers_get_only_their_own_variables() -> None:
    assert all(key.startswith("POSTGRES_") for key in SERVICES["postgres"]["environment"])
    assert set(SERVICES["redis"]["environment"]) == {"VALKEYCLI_AUTH"}


def test_the_api_has_no_broker_in_its_settings_and_none_in_its_reach() -> None:
    assert "REDIS_URL" not in SERVICES["api"]["environment"]
    assert not set(SERVICES["api"]["networks"]) & set(SERVICES["redis"]["networks"])


def test_migrate_gets_no_key() -> None:
    assert set(SERVICES["migrate"]["environment"]) == {"DATABASE_URL"}


def test_urls_name_services_that_share_a_network() -> None:
    for service in OURS.values():
        for url in _urls(service):
            server = SERVICES[urlsplit(url).hostname or ""]
            assert set(server["networks"]) & set(service["networks"]), url


def test_the_password_in_a_url_is_the_servers_own() -> None:
    passwords = {
        "postgres": SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"],
        "redis": SERVICES["redis"]["environment"]["VALKEYCLI_AUTH"],
    }
    for url in (url for service in OURS.values() for url in _urls(service)):
        parts = urlsplit(url)
        assert parts.password == passwords[parts.hostname or ""]


@every_service
def test_every_service_is_contained(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "network_mode", "devices"} & set(service)
    account = service.get("user") or dockerfile.last(service["build"]["target"], "USER")
    assert account not in {"root", "0"}


def test_only_the_api_is_reachable_and_only_from_this_machine() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["api"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["api"]["ports"])


def test_the_servers_stand_in_networks_without_a_way_out() -> None:
    inner = {network for network, options in TREE["networks"].items() if (options or {}).get("internal")}
    assert set(SERVICES["postgres"]["networks"]) | set(SERVICES["redis"]["networks"]) <= inner


def test_only_the_api_the_sender_of_webhooks_and_the_asker_of_witnesses_have_a_way_out() -> None:
    inner = {network for network, options in TREE["networks"].items() if (options or {}).get("internal")}
    assert {name for name, service in SERVICES.items() if set(service["networks"]) - inner} == {
        "api",
        "worker-io",
        "dispatch",
    }


def test_only_dispatch_holds_the_key_of_the_public_log_and_its_directory() -> None:
    holders = {name for name, service in SERVICES.items() if "EXPUNGE_LOG_KEY" in (service.get("environment") or {})}
    assert holders == {"dispatch"}
    assert {name for name, s in SERVICES.items() if any("/log" in v for v in s.get("volumes", []))} == {"dispatch"}


@every_service
def test_what_is_waited_for_can_happen(name: str) -> None:
    for other, wanted in SERVICES[name].get("depends_on", {}).items():
        if wanted["condition"] == "service_healthy":
            assert "test" in SERVICES[other]["healthcheck"]
        else:
            assert wanted["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"] == "no"


@every_service_of_ours
def test_nobody_starts_before_the_tables_are_there(name: str) -> None:
    assert name == "migrate" or "migrate" in OURS[name]["depends_on"]


@every_service_of_ours
def test_every_image_is_a_stage_and_has_one_name(name: str) -> None:
    target = OURS[name]["build"]["target"]
    assert target in dockerfile.stages()
    assert OURS[name]["image"] == f"expunge-{target}"


def test_build_arguments_are_those_of_the_stage_with_the_same_defaults() -> None:
    arguments = SERVICES["worker-cpu"]["build"]["args"]
    declared = dict(rest.split("=", 1) for rest in dockerfile.stages()["worker"].all("ARG"))
    assert arguments == declared


def test_networks_and_volumes_are_declared_and_used() -> None:
    assert {network for service in SERVICES.values() for network in service["networks"]} == set(TREE["networks"])
    assert {source for service in SERVICES.values() for source, _ in _mounts(service)} == set(TREE["volumes"])


def test_volumes_lie_where_the_settings_look_and_belong_to_our_account() -> None:
    made = " ".join(dockerfile.stages()["base"].all("RUN"))
    for name in ("worker-cpu", "worker-gpu", "cli"):
        mounts = dict(_mounts(SERVICES[name]))
        settings = SERVICES[name]["environment"]
        assert settings["EXPUNGE_STORE"] == f"file://{mounts['models']}"
        assert str(PurePosixPath(settings["EXPUNGE_RECIPES"]).parent) == mounts["recipes"] == settings["PYTHONPATH"]
        owned = made.partition("install --directory --owner expunge")[2]
        assert all(path in owned for path in mounts.values())


def test_unlearning_may_read_recipes_and_not_write_them() -> None:
    assert "recipes:/etc/expunge/recipes:ro" in SERVICES["worker-cpu"]["volumes"]


def test_portals_keys_are_read_where_messages_are_signed_and_only_there() -> None:
    files = ("EXPUNGE_OPENDSR_KEY", "EXPUNGE_OPENDSR_CERTIFICATE")
    chosen = compose.services({**FILLED, "EXPUNGE_OPENDSR_DOMAIN": "dsr.example"})
    assert {name for name, service in chosen.items() if set(files) & set(service.get("environment", {}))} == {
        "api",
        "worker-io",
    }
    for name in ("api", "worker-io"):
        assert "secrets:/etc/expunge/secrets:ro" in SERVICES[name]["volumes"]
        assert {str(PurePosixPath(chosen[name]["environment"][file]).parent) for file in files} == {
            "/etc/expunge/secrets"
        }
        assert {SERVICES[name]["environment"][file] for file in files} == {""}, "without a domain it is off"


def test_what_an_operator_left_out_is_what_the_code_takes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SERVICES["api"]["environment"].items():
        monkeypatch.setenv(name, value)
    given = {name for name, value in SERVICES["api"]["environment"].items() if value.startswith("given")}
    ours, untouched = Settings(), Settings.model_construct()
    for name, field in Settings.model_fields.items():
        alias = str(field.validation_alias or f"EXPUNGE_{name}".upper())
        if alias not in given | {"DATABASE_URL"}:
            assert getattr(ours, name) == getattr(untouched, name), name


def test_all_ports_of_the_api_are_one() -> None:
    command = SERVICES["api"]["command"]
    port = command[command.index("--port") + 1]
    assert SERVICES["api"]["ports"] == [f"127.0.0.1:8000:{port}"]
    assert dockerfile.last("api", "EXPOSE") == port
    assert f"127.0.0.1:{port}/health/live" in " ".join(dockerfile.healthcheck("api"))
    assert dockerfile.words("api", "CMD") == command


def test_the_gpu_worker_is_the_cpu_worker_with_a_gpu() -> None:
    gpu, cpu = dict(SERVICES["worker-gpu"]), SERVICES["worker-cpu"]
    [device] = gpu.pop("deploy")["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert gpu.pop("profiles") == ["gpu"]
    assert gpu == cpu


def test_every_queue_has_a_worker() -> None:
    served = {SERVICES[name]["command"][-1] for name in ("worker-io", "worker-cpu")}
    assert served == set(QUEUES)


def _urls(service: dict[str, Any]) -> Iterator[str]:  # Any: what YAML holds
    for key in ("DATABASE_URL", "REDIS_URL"):
        if url := service.get("environment", {}).get(key):
            yield url


def _mounts(service: dict[str, Any]) -> list[tuple[str, str]]:  # Any: what YAML holds
    pairs = [volume.split(":") for volume in service.get("volumes", [])]
    return [(pair[0], pair[1]) for pair in pairs]
