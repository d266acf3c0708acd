"""HTTP: one file per noun."""

from starlette.convertors import StringConvertor, register_url_convertor


class _Segment(StringConvertor):
    """Part of a path: what follows a colon is an action, never the end of an id or a name."""

    regex = "[^/:]+"


# Before any route is made; else PATCH /v1/webhook-endpoints/ID:ping would be read as PATCH of an endpoint "ID:ping".
register_url_convertor("str", _Segment())
