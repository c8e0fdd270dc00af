// Every endpoint beside the socket, through the official JavaScript SDK.

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { serveScripted } from './turnwire.js';

const turnwire = serveScripted();
const ASKED = { model: 'scripted', input: 'x' };

const gather = async (pages) => {
  const all = [];
  for await (const one of pages) all.push(one);
  return all;
};

test('a response is made, shown, counted and deleted', async () => {
  const { responses } = turnwire.client;
  const made = await responses.create(ASKED);
  assert.deepEqual((await responses.retrieve(made.id)).output, made.output);
  const [item] = await gather(responses.inputItems.list(made.id));
  assert.equal(item.content[0].text, 'x');
  const counted = await responses.inputTokens.count(ASKED);
  assert.equal(counted.input_tokens, made.usage.input_tokens);
  const compacted = await responses.compact({ model: 'scripted', previous_response_id: made.id });
  assert.equal(compacted.object, 'response.compaction');
  await responses.delete(made.id);
  await assert.rejects(responses.retrieve(made.id), { status: 404, code: 'response_not_found' });
});

test('a response in the background is followed from any event on', async () => {
  const { responses } = turnwire.client;
  const begun = await responses.create({ ...ASKED, background: true });
  assert.equal(begun.status, 'queued');
  const all = await gather(await responses.retrieve(begun.id, { stream: true }));
  assert.deepEqual(
    all.map((event) => event.sequence_number),
    all.map((_, number) => number),
  );
  const rest = await responses.retrieve(begun.id, { stream: true, starting_after: 2 });
  assert.deepEqual(await gather(rest), all.slice(3));
  const ended = await responses.cancel(begun.id);
  assert.equal(ended.status, 'completed');
});

test('a conversation and its items', async () => {
  const { conversations } = turnwire.client;
  const said = (content) => ({ type: 'message', role: 'user', content });
  const made = await conversations.create({ metadata: { a: 'b' }, items: [said('1')] });
  assert.deepEqual(await conversations.retrieve(made.id), made);
  await conversations.update(made.id, { metadata: { a: 'c' } });
  await conversations.items.create(made.id, { items: [said('2'), said('3')] });
  const listed = await gather(conversations.items.list(made.id, { order: 'asc', limit: 2 }));
  assert.deepEqual(
    listed.map((item) => item.content[0].text),
    ['1', '2', '3'],
  );
  const one = { conversation_id: made.id };
  assert.deepEqual(await conversations.items.retrieve(listed[1].id, one), listed[1]);
  const left = await conversations.items.delete(listed[1].id, one);
  assert.deepEqual(left.metadata, { a: 'c' });
  assert.equal((await gather(conversations.items.list(made.id))).length, 2);
  assert.equal((await conversations.delete(made.id)).deleted, true);
});

test('models are listed', async () => {
  const [model] = await gather(turnwire.client.models.list());
  assert.deepEqual(await turnwire.client.models.retrieve('scripted'), model);
});
