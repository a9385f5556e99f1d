// What @asyncapi/parser has against a document, but that a newer version of the standard exists:
// node asyncapi_parser.mjs PACKAGES FILE
import { createRequire } from 'node:module'
import { readFileSync } from 'node:fs'

const [packages, file] = process.argv.slice(2)
const { Parser } = createRequire(`${packages}/`)('@asyncapi/parser')
const found = await new Parser().validate(readFileSync(file, 'utf8'))
for (const { code, path, message } of found) {
  if (code !== 'asyncapi-latest-version') console.log(`${path.join('.')}: ${message} (${code})`)
}
