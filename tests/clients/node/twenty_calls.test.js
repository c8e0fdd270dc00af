// The official JavaScript SDK: twenty function calls in a row on one socket, each turn sending
// nothing but the output of the call before.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import Ajv from 'ajv/dist/2020.js';
import { ResponsesWS } from 'openai/resources/responses/ws';

import { serveScripted } from './turnwire.js';

const CALLS = 20;
const TOOLS = JSON.parse(readFileSync(new URL('../tools.json', import.meta.url)));

const ajv = new Ajv();
const schemas = new Map(TOOLS.map((tool) => [tool.name, ajv.compile(tool.parameters)]));

const turnwire = serveScripted();

// Sends one create and returns the response of its terminal event.
function takeTurn(socket, request) {
  return new Promise((resolve, reject) => {
    const onEvent = (event) => {
      if (event.type !== 'response.completed') return;
      socket.off('event', onEvent);
      resolve(event.response);
    };
    socket.on('event', onEvent);
    socket.once('error', reject);
    socket.send({ type: 'response.create', ...request });
  });
}

test('twenty calls on one socket', async () => {
  const socket = new ResponsesWS(turnwire.client);
  // Without a listener every error event would end the process.
  socket.on('error', () => {});
  await once(socket.socket, 'open');

  const settings = {
    model: 'scripted',
    tools: TOOLS,
    tool_choice: 'required',
    parallel_tool_calls: false,
    store: false,
  };
  let request = { ...settings, input: 'Run my errands.' };
  let known = 0;
  const ids = new Set();
  for (let number = 0; number < CALLS; number += 1) {
    const response = await takeTurn(socket, request);
    assert.equal(response.output.length, 1);
    const [call] = response.output;
    assert.equal(call.type, 'function_call');
    const accepts = schemas.get(call.name);
    assert.ok(accepts(JSON.parse(call.arguments)), JSON.stringify(accepts.errors));

    const { usage } = response;
    const computed = usage.input_tokens - usage.input_tokens_details.cached_tokens;
    assert.ok(computed - (usage.input_tokens - known) <= 1, 'more than what is new was computed');
    known = usage.input_tokens + usage.output_tokens;
    ids.add(response.id);
    request = {
      ...settings,
      previous_response_id: response.id,
      input: [{ type: 'function_call_output', call_id: call.call_id, output: '{"ok":true}' }],
    };
  }
  assert.equal(ids.size, CALLS);
  socket.close();
});
