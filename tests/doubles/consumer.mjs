// The published NATS client for node, as an outside consumer: node consumer.mjs PACKAGES CREDENTIAL POSITION TIME MANY
// CREDENTIAL is a file with the answer of POST /api/v1/feeds/credentials and the names of `foreign` things beside it.
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'

const [packages, file, position, time, many] = process.argv.slice(2)
const require = createRequire(`${packages}/`)
const { connect } = require('@nats-io/transport-node')
const { jetstream, jetstreamManager, AckPolicy, DeliverPolicy } = require('@nats-io/jetstream')
const made = JSON.parse(readFileSync(file, 'utf8'))

const nc = await connect({
  servers: made.url, user: made.user, pass: made.password, inboxPrefix: made.inboxPrefix, reconnect: false,
})
const refused = []
const watching = (async () => {
  for await (const status of nc.status()) if (status.type === 'error') refused.push(String(status.error))
})()
const js = jetstream(nc, { domain: made.domain })

async function taken(consumer, count) {
  const found = []
  const messages = await consumer.consume({ max_messages: 100 })
  for await (const message of messages) {
    found.push([message.seq, message.subject, message.headers.get('ce-type')])
    if (consumer.acknowledges) await message.ackAck()
    if (found.length >= count) break
  }
  await messages.close()
  return found
}

// Ordered consumers, from the first position, from another one and from a time.
let ordinal = 0
const ordered = (more) =>
  js.consumers.get(made.stream, { name_prefix: `${made.consumerPrefix}-ordered${++ordinal}`, ...more })
const whole = await taken(await ordered({ deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: 1 }), Number(many))
const behind = await taken(
  await ordered({ deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: Number(position) }), 1)
const since = await taken(await ordered({ deliver_policy: DeliverPolicy.StartTime, opt_start_time: time }), Number(many))

// A durable one goes on where it was.
const jsm = await jetstreamManager(nc, { domain: made.domain })
await jsm.consumers.add(made.stream, { durable_name: made.durables[1], ack_policy: AckPolicy.Explicit })
const halves = []
for (let turn = 0; turn < 2; turn++) {
  const consumer = await js.consumers.get(made.stream, made.durables[1])
  for (let one = 0; one < 2; one++) {
    const message = await consumer.next({ expires: 10000 })
    await message.ackAck()
    halves.push(message.seq)
  }
}

// What it may not do.
async function isRefused(doing) {
  const before = refused.length
  try {
    await doing()
    await nc.flush()
    await nc.flush()
  } catch {
    return true
  }
  return refused.length > before
}
const admitted = []
for (const subject of made.foreign.publish) {
  if (!await isRefused(async () => nc.publish(subject, 'x'))) admitted.push(`publish ${subject}`)
}
for (const subject of made.foreign.subscribe) {
  if (!await isRefused(async () => { nc.subscribe(subject, { callback() {} }) })) admitted.push(`subscribe ${subject}`)
}
const tries = {
  'purge': () => jsm.streams.purge(made.stream),
  'delete the stream': () => jsm.streams.delete(made.stream),
  'update the stream': () => jsm.streams.update(made.stream, { max_msgs: 1 }),
  'add a stream': () => jsm.streams.add({ name: 'mine', subjects: ['mine'] }),
  'get a message': () => jsm.streams.getMessage(made.stream, { seq: 1 }),
  'delete a message': () => jsm.streams.deleteMessage(made.stream, 1),
  'publish by JetStream': () => js.publish(made.foreign.publish[0], 'x', { timeout: 500 }),
  'a foreign filter': () => jsm.consumers.add(made.stream, {
    name: `${made.consumerPrefix}-x`, ack_policy: AckPolicy.None, filter_subject: made.foreign.subscribe[0],
  }),
  'read a foreign consumer': () => jsm.consumers.info(made.stream, made.foreign.consumer),
  'delete a foreign consumer': () => jsm.consumers.delete(made.stream, made.foreign.consumer),
  'pull from a foreign consumer': async () => {
    const message = await nc.request(
      `${made.apiPrefix}.CONSUMER.MSG.NEXT.${made.stream}.${made.foreign.consumer}`, '{"batch":1}', { timeout: 5000 })
    if (JSON.parse(message.string()).error) throw new Error('refused')
  },
  'a consumer that is pushed': () => jsm.consumers.add(made.stream, {
    name: `${made.consumerPrefix}-y`, ack_policy: AckPolicy.None, deliver_subject: 'ask.files',
  }),
}
for (const [what, doing] of Object.entries(tries)) {
  if (!await isRefused(doing)) admitted.push(what)
}
console.log(JSON.stringify({ whole, behind, since, halves, admitted }))
await nc.close()
await watching
