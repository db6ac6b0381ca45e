// A certificate for a key that is made here: section 10 of edge_sdk/protocol/README.md.
import { X509Certificate, createPrivateKey, createPublicKey, generateKeyPairSync, sign } from "node:crypto";
import { request } from "node:https";
import { hex, must, sha256 } from "./wire.mjs";

function der(tag, ...parts) {
  const body = Buffer.concat(parts), { length } = body;
  const long = length < 256 ? [0x81, length] : [0x82, length >> 8, length & 255];
  return Buffer.concat([Buffer.from([tag, ...(length < 128 ? [length] : long)]), body]);
}

const [SEQUENCE, SET, INTEGER, BITS, OID, UTF8, ATTRIBUTES] = [0x30, 0x31, 0x02, 0x03, 0x06, 0x0c, 0xa0];
const COMMON_NAME = der(OID, Buffer.from("550403", "hex"));
const ECDSA_WITH_SHA256 = der(SEQUENCE, der(OID, Buffer.from("2a8648ce3d040302", "hex")));

/** PKCS #10: what asks for a certificate of `device` for `key`. */
function requestFor(device, key) {
  const name = der(SEQUENCE, der(SET, der(SEQUENCE, COMMON_NAME, der(UTF8, Buffer.from(device)))));
  const spki = createPublicKey(key).export({ type: "spki", format: "der" });
  const asked = der(SEQUENCE, der(INTEGER, Buffer.from([0])), name, spki, der(ATTRIBUTES));
  const signature = der(BITS, Buffer.from([0]), sign("sha256", asked, key));
  const lines = der(SEQUENCE, asked, ECDSA_WITH_SHA256, signature).toString("base64").match(/.{1,64}/g);
  return ["-----BEGIN CERTIFICATE REQUEST-----", ...lines, "-----END CERTIFICATE REQUEST-----", ""].join("\n");
}

function ask(url, options, body) {
  return new Promise((resolve, reject) => {
    const asked = request(url, options, (response) => {
      let said = "";
      response.setEncoding("utf8").on("data", (part) => (said += part)).on("end", () => {
        if (response.statusCode === 200) resolve(said);
        else reject(new Error(`${response.statusCode}: ${JSON.parse(said).error}`));
      });
    });
    asked.on("error", reject).end(body);
  });
}

/** What the coordinator's answer is, with `authority` and `key` in PEM; the authority is known by its `fingerprint`. */
export async function enroll(coordinator, token, fingerprint, device) {
  const authority = await ask(`${coordinator}/enroll/authority`, { rejectUnauthorized: false });
  must(`sha256:${hex(sha256(new X509Certificate(authority).raw))}` === fingerprint, "it is another authority");
  const { privateKey: key } = generateKeyPairSync("ec", {
    namedCurve: "P-256", privateKeyEncoding: { type: "pkcs8", format: "pem" },
  });
  const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
  const body = JSON.stringify({ device, request: requestFor(device, createPrivateKey(key)) });
  const answer = JSON.parse(await ask(`${coordinator}/enroll`, { method: "POST", ca: authority, headers }, body));
  const certificate = new X509Certificate(answer.certificate);
  must(certificate.verify(new X509Certificate(authority).publicKey), "the certificate is of another authority");
  must(certificate.checkPrivateKey(createPrivateKey(key)), "the certificate is of another key");
  return { ...answer, authority, key };
}
