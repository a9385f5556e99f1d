// Verifies deliveries with standardwebhooks as it is published: node verify_webhooks.mjs PACKAGES < LINES
// Each line is [secret, headers, body]; prints how many it accepted, and `refused` where one that was changed was not.
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'

const { Webhook } = createRequire(`${process.argv[2]}/`)('standardwebhooks')
let accepted = 0
let refused = 0
for (const line of readFileSync(0, 'utf8').trim().split('\n')) {
  const [secret, headers, body] = JSON.parse(line)
  const webhook = new Webhook(secret)
  webhook.verify(body, headers)
  accepted += 1
  try {
    webhook.verify(`${body} `, headers)
  } catch {
    refused += 1
  }
}
console.log(JSON.stringify({ accepted, refused }))
