// A running `turnwire serve` with the scripted engine, for the tests of one file.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { after, before } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

import OpenAI from 'openai';

const BINARY =
  process.env.TURNWIRE_BIN ??
  fileURLToPath(new URL('../../../target/release/turnwire', import.meta.url));

// Starts it before the tests and ends it behind them. What is returned gets its `client` then.
export function serveScripted() {
  const turnwire = {};
  let server;

  before(async () => {
    const address = `127.0.0.1:${await freePort()}`;
    const flags = ['--listen', address, '--engine', 'scripted', '--store', 'memory'];
    server = spawn(BINARY, ['serve', ...flags], { stdio: 'ignore' });
    turnwire.client = new OpenAI({
      baseURL: `http://${address}/v1`,
      apiKey: 'unused',
      maxRetries: 0,
    });
    for (;;) {
      assert.equal(server.exitCode, null, 'turnwire ended');
      const health = await fetch(`http://${address}/health`).catch(() => null);
      if (health?.ok) return;
      await sleep(20);
    }
  });

  after(async () => {
    server.kill('SIGTERM');
    const [code] = await once(server, 'exit');
    assert.equal(code, 0);
  });

  return turnwire;
}

async function freePort() {
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address();
  probe.close();
  await once(probe, 'close');
  return port;
}
