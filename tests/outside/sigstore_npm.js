// @sigstore/verify and @sigstore/core on cases in JSON: node sigstore_npm.js NODE_MODULES < cases > verdicts
const { readFileSync } = require("node:fs");
const { createPublicKey, verify } = require("node:crypto");

const modules = process.argv[2];
const { verifyMerkleInclusion } = require(`${modules}/@sigstore/verify/dist/tlog/merkle.js`);
const { verifyCheckpoint } = require(`${modules}/@sigstore/verify/dist/tlog/checkpoint.js`);
const { dsse } = require(`${modules}/@sigstore/core`);

const ED25519_SPKI = Buffer.from("302a300506032b6570032100", "hex");
const publicKey = (hex) =>
  createPublicKey({ key: Buffer.concat([ED25519_SPKI, Buffer.from(hex, "hex")]), format: "der", type: "spki" });

const ask = {
  inclusion(c) {
    const inclusionProof = {
      logIndex: String(c.index),
      hashes: c.hashes.map((one) => Buffer.from(one, "hex")),
      checkpoint: { envelope: c.checkpoint },
    };
    const log = { logID: Buffer.from(c.keyid, "hex"), baseURL: `https://${c.origin}`, publicKey: publicKey(c.key) };
    const entry = { inclusionProof, canonicalizedBody: Buffer.from(c.entry, "hex") };
    verifyMerkleInclusion(entry, verifyCheckpoint(entry, [log]));
  },
  opened({ envelope, key }) {
    const payload = Buffer.from(envelope.payload, "base64");
    const signature = Buffer.from(envelope.signatures[0].sig, "base64");
    const message = dsse.preAuthEncoding(envelope.payloadType, payload);
    if (!verify(null, message, publicKey(key), signature)) throw new Error("signature");
    return payload.toString();
  },
};

const verdict = (c) => {
  try {
    return { good: ask[c.ask](c) ?? null };
  } catch (error) {
    return { bad: error.message };
  }
};
console.log(JSON.stringify(JSON.parse(readFileSync(0)).map(verdict)));
