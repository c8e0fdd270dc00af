// The official JavaScript SDK's session helper: an agent that splits into sixteen lanes on one
// socket, every branch forked from the same call.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { ResponsesWebSocketSession } from 'openai/lib/responses/responses-websocket-session';
import { ResponsesWS } from 'openai/resources/responses/ws';

import { serveScripted } from './turnwire.js';

const LANES = 16;
const TURNS = 5;

const turnwire = serveScripted();

const SETTINGS = {
  model: 'scripted',
  tools: JSON.parse(readFileSync(new URL('../tools.json', import.meta.url))),
  tool_choice: 'required',
  parallel_tool_calls: false,
  store: false,
};

// The next request of a lane: the output of the call that `response` made, in its own words.
function answer(response, lane) {
  const [call] = response.output;
  assert.equal(call.type, 'function_call');
  return {
    ...SETTINGS,
    previous_response_id: response.id,
    input: [
      { type: 'function_call_output', call_id: call.call_id, output: `{"branch":${lane}}` },
    ],
  };
}

test('sixteen lanes fork from one chain', async () => {
  const socket = new ResponsesWS(turnwire.client);
  socket.on('error', () => {});
  await once(socket.socket, 'open');
  const session = new ResponsesWebSocketSession(socket, {
    maxLanes: LANES,
    maxBufferedEvents: 10_000,
    maxBufferedBytes: 64 << 20,
  });

  const trunk = session.lane('trunk');
  trunk.create({ ...SETTINGS, input: 'Run my errands.' });
  const parent = await trunk.finalResponse();

  const isBound = [];
  const branches = Array.from({ length: LANES - 1 }, async (_, number) => {
    const lane = session.lane(`branch-${number}`);
    lane.create(answer(parent, number));
    // The fork has its parent for sure once this event is there.
    const bound = (async () => {
      while ((await lane.receive()).type !== 'response.in_progress');
    })();
    isBound.push(bound);
    await bound;
    const responses = [await lane.finalResponse()];
    while (responses.length < TURNS) {
      lane.create(answer(responses.at(-1), number));
      responses.push(await lane.finalResponse());
    }
    return responses;
  });
  await Promise.all(isBound);
  trunk.create(answer(parent, LANES));
  const lanes = [[await trunk.finalResponse()], ...(await Promise.all(branches))];

  const ids = new Set(lanes.flat().map((response) => response.id));
  assert.equal(ids.size, 1 + (LANES - 1) * TURNS);
  for (const responses of lanes) {
    let before = parent;
    for (const response of responses) {
      assert.equal(response.status, 'completed');
      assert.equal(response.previous_response_id, before.id);
      const context = before.usage.input_tokens + before.usage.output_tokens;
      assert.ok(response.usage.input_tokens > context);
      before = response;
    }
  }
  session.close();
  socket.close();
});
