// Node's http2: `node http2.mjs TLS_PORT PLAIN_PORT AUTHORITY`. It says what it did, or ends with an error.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import http2 from "node:http2";
import https from "node:https";
import { once } from "node:events";

const [tls, plain, authority] = process.argv.slice(2);
const ca = readFileSync(authority);

// A request, and its answer when it has all come.
async function ask(session, headers, body) {
  const stream = session.request(headers);
  if (body === undefined) stream.end();
  else stream.end(body);
  const [head] = await once(stream, "response");
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return { status: head[":status"], body: Buffer.concat(pieces) };
}

for (const [to, options] of [
  [`https://localhost:${tls}`, { ca }],
  [`http://localhost:${plain}`, {}],
]) {
  const session = http2.connect(to, options);
  await once(session, "connect");
  if (!session.remoteSettings.enableConnectProtocol) await once(session, "remoteSettings");
  assert.equal(session.remoteSettings.enableConnectProtocol, true);
  const many = await Promise.all(Array.from({ length: 50 }, (_, n) => ask(session, { ":path": `/bytes/${n * 1000}` })));
  many.forEach((answer, n) => assert.deepEqual([answer.status, answer.body.length], [200, n * 1000]));
  const body = Buffer.alloc(3_000_000, "node");
  const echo = await ask(session, { ":method": "POST", ":path": "/echo" }, body);
  assert.ok(echo.status === 200 && echo.body.equals(body), `${to}: another body came back`);
  await new Promise((resolve, reject) => session.ping((error) => (error ? reject(error) : resolve())));
  // One that is given up costs no other.
  const given_up = session.request({ ":path": "/delay/60000" });
  given_up.on("error", () => {});
  given_up.close(http2.constants.NGHTTP2_CANCEL);
  assert.equal((await ask(session, { ":path": "/" })).status, 200);
  session.close();
  await once(session, "close");
}

const response = await new Promise((resolve, reject) =>
  https.get(`https://localhost:${tls}/`, { ca, agent: new https.Agent({ keepAlive: false }) }, resolve).on("error", reject),
);
assert.equal(response.statusCode, 200);
response.resume();
console.log("50 requests at a time, 3 MB up and down, a PING and a cancel, with TLS and without; https over HTTP/1.1");
