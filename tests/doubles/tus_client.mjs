// tus-js-client as it is published: node tus_client.mjs PACKAGES URL TOKEN FILE TARGET [PARTS]
import { createRequire } from 'node:module'
import { createReadStream, statSync } from 'node:fs'

const [packages, endpoint, token, path, target, parts] = process.argv.slice(2)
const tus = createRequire(`${packages}/`)('tus-js-client')
const upload = new tus.Upload(createReadStream(path), {
  endpoint,
  headers: { Authorization: `Bearer ${token}` },
  metadata: { filename: target },
  ...(Number(parts ?? 1) > 1 ? {} : { uploadSize: statSync(path).size }),
  chunkSize: 48 * 1024 * 1024,
  retryDelays: Array(1000).fill(300),
  parallelUploads: Number(parts ?? 1),
  onError(error) {
    console.error(String(error))
    process.exit(1)
  },
  onSuccess() {
    console.log('done')
    process.exit(0)
  },
})
upload.start()
