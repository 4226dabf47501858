import t from 'tap'
import { mustRun } from '../support/child.ts'
import { imageDifference } from '../support/images.ts'
import { BACKENDS, CLEAN_EXIT, serveDisk } from '../support/served-disk.ts'
import type { Scope } from '../support/scope.ts'

const SIZE = 4 * 1024 * 1024 + 13

/** Debian's libnbd belongs to Debian's python3, whatever other python3 the user has. */
const DEBIAN_PATH = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' }

const PROLOGUE = `
import nbd, sys, errno, json
h = nbd.NBD()
h.connect_uri(sys.argv[1])
size = h.get_size()
h.set_strict_mode(0)  # let wrong requests through: the server's answer is what is tested
def error_of(request):
    try:
        request()
    except nbd.Error as error:
        return error.errno
    return "accepted"
`

/** Runs a libnbd program against the export; what it hands to print(json.dumps(...)) is the result. */
async function libnbd(scope: Scope, uri: string, program: string): Promise<unknown> {
  const output = await mustRun(scope, 'python3', ['-', uri], {
    env: DEBIAN_PATH,
    input: `${PROLOGUE}${program}\n`,
  })
  return JSON.parse(output)
}

for (const backend of BACKENDS) {
  void t.test(`libnbd writes, zeroes and trims on ${backend}, with and without FUA`, async (t) => {
    const { server, uri, image } = await serveDisk(t, backend, SIZE)
    const result = await libnbd(
      t,
      uri,
      `
h.pwrite(b"a" * 100000, 3)
h.pwrite(b"b" * 4096, 50000, nbd.CMD_FLAG_FUA)
h.zero(1000, 60000)
h.zero(1000, 62000, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.pwrite(b"c" * 13, size - 13)
h.flush()
data = bytearray(size)
data[3:100003] = b"a" * 100000
data[50000:54096] = b"b" * 4096
data[60000:61000] = bytes(1000)
data[62000:63000] = bytes(1000)
data[size-13:size] = b"c" * 13
print(json.dumps({"same": h.pread(size, 0) == data, "tail": h.pread(13, size - 13).decode()}))
h.shutdown()
`,
    )
    t.same(result, { same: true, tail: 'c'.repeat(13) })
    t.same(await server.stop(), CLEAN_EXIT)
    if (image === undefined) return
    const expected = Buffer.alloc(SIZE)
    expected.fill('a', 3, 100_003)
    expected.fill('b', 50_000, 54_096)
    expected.fill(0, 60_000, 61_000)
    expected.fill(0, 62_000, 63_000)
    expected.fill('c', SIZE - 13)
    t.equal(await imageDifference(image, expected), undefined)
  })

  void t.test(
    `requests beyond the end of ${backend} get the error of the specification`,
    async (t) => {
      const { server, uri } = await serveDisk(t, backend, SIZE)
      const errors = await libnbd(
        t,
        uri,
        `
print(json.dumps({
  "read across the end": error_of(lambda: h.pread(2, size - 1)),
  "read at the end": error_of(lambda: h.pread(1, size)),
  "read far beyond": error_of(lambda: h.pread(512, (1 << 63) - 1024)),
  "write across the end": error_of(lambda: h.pwrite(b"xy", size - 1)),
  "write far beyond": error_of(lambda: h.pwrite(b"xy", (1 << 63) - 1024)),
  "zeroes across the end": error_of(lambda: h.zero(2, size - 1)),
  "trim across the end": error_of(lambda: h.trim(2, size - 1)),
  "the last byte": error_of(lambda: h.pread(1, size - 1)),
  "still in step": h.pread(4, 0) == bytes(4),
}))
h.shutdown()
`,
      )
      t.same(errors, {
        'read across the end': 'EINVAL',
        'read at the end': 'EINVAL',
        'read far beyond': 'EINVAL',
        'write across the end': 'ENOSPC',
        'write far beyond': 'ENOSPC',
        'zeroes across the end': 'ENOSPC',
        'trim across the end': 'EINVAL',
        'the last byte': 'accepted',
        'still in step': true,
      })
      t.same(await server.stop(), CLEAN_EXIT)
    },
  )

  void t.test(`flags that mean nothing for a command are refused on ${backend}`, async (t) => {
    const { server, uri } = await serveDisk(t, backend, SIZE)
    const errors = await libnbd(
      t,
      uri,
      `
print(json.dumps({
  "unknown flag": error_of(lambda: h.pread(1, 0, 1 << 14)),
  "no hole on a write": error_of(lambda: h.pwrite(b"x", 0, nbd.CMD_FLAG_NO_HOLE)),
  "still in step": h.pread(4, 0) == bytes(4),
}))
h.shutdown()
`,
    )
    t.same(errors, {
      'unknown flag': 'EINVAL',
      'no hole on a write': 'EINVAL',
      'still in step': true,
    })
    t.same(await server.stop(), CLEAN_EXIT)
  })

  void t.test(`writes of one connection are seen by another on ${backend}`, async (t) => {
    const { server, uri } = await serveDisk(t, backend, SIZE)
    const result = await libnbd(
      t,
      uri,
      `
other = nbd.NBD()
other.connect_uri(sys.argv[1])
seen = []
for i in range(50):
    h.pwrite(bytes([i]) * 5000, i * 3000)
    seen.append(other.pread(5000, i * 3000) == bytes([i]) * 5000)
other.flush()
print(json.dumps(all(seen)))
other.shutdown()
h.shutdown()
`,
    )
    t.equal(result, true)
    t.same(await server.stop(), CLEAN_EXIT)
  })

  void t.test(
    `a client that vanishes with requests in flight harms nobody on ${backend}`,
    async (t) => {
      const { server, uri } = await serveDisk(t, backend, SIZE)
      const result = await libnbd(
        t,
        uri,
        `
rude = nbd.NBD()
rude.connect_uri(sys.argv[1])
for i in range(64):
    rude.aio_pread(nbd.Buffer(65536), i * 4096)
for i in range(8):
    rude.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(65536)), 0)
del rude
h.pwrite(b"alive", 100)
print(json.dumps(h.pread(5, 100).decode()))
h.shutdown()
`,
      )
      t.equal(result, 'alive')
      t.same(await server.stop(), CLEAN_EXIT)
    },
  )

  void t.test(`libnbd reads ${backend} in chunks, and whole where it asks for that`, async (t) => {
    const { server, uri } = await serveDisk(t, backend, SIZE)
    const result = await libnbd(
      t,
      uri,
      `
h.pwrite(b"d" * 1048576, 1048576)
kinds = {nbd.READ_DATA: "data", nbd.READ_HOLE: "hole", nbd.READ_ERROR: "error"}
def chunks(count, offset, flags=0):
    seen = []
    data = h.pread_structured(count, offset, lambda b, o, k, e: seen.append([kinds[k], o, len(b)]), flags)
    expected = bytes(size)[:1048576] + b"d" * 1048576 + bytes(size - 2097152)
    assert data == expected[offset:offset + count]
    return seen
print(json.dumps({
  "structured": h.get_structured_replies_negotiated(),
  "small": chunks(4096, 1048576),
  "sparse": chunks(3145728, 0),
  "whole": chunks(3145728, 0, nbd.CMD_FLAG_DF),
}))
h.shutdown()
`,
    )
    const MIB = 1024 * 1024
    t.same(result, {
      structured: true,
      small: [['data', MIB, 4096]],
      sparse: [
        ['hole', 0, MIB],
        ['data', MIB, MIB],
        ['hole', 2 * MIB, MIB],
      ],
      whole: [['data', 0, 3 * MIB]],
    })
    t.same(await server.stop(), CLEAN_EXIT)
  })

  void t.test(`libnbd without structured replies is served by ${backend} as well`, async (t) => {
    const { server, uri } = await serveDisk(t, backend, SIZE)
    const result = await libnbd(
      t,
      uri,
      `
plain = nbd.NBD()
plain.set_request_structured_replies(False)
plain.connect_uri(sys.argv[1])
plain.pwrite(b"plain", 3)
print(json.dumps({
  "structured": plain.get_structured_replies_negotiated(),
  "df": plain.can_df(),
  "data": plain.pread(1048576, 0)[3:8].decode(),
}))
plain.shutdown()
h.shutdown()
`,
    )
    t.same(result, { structured: false, df: false, data: 'plain' })
    t.same(await server.stop(), CLEAN_EXIT)
  })

  void t.test(`libnbd lists, selects and asks for the contexts of ${backend}`, async (t) => {
    const { server, uri } = await serveDisk(t, backend, SIZE)
    const result = await libnbd(
      t,
      uri,
      `
h.pwrite(b"d" * 1048576, 1048576)
listed = []
o = nbd.NBD()
o.set_opt_mode(True)
o.connect_uri(sys.argv[1])
o.opt_list_meta_context(lambda name: listed.append(name))
o.add_meta_context("base:allocation")
o.add_meta_context("qemu:dirty-bitmap:none")
o.opt_go()
said = []
def note(name, offset, entries, error):
    said.append([name, offset, entries])
o.block_status(size, 0, note)
o.block_status(size - 1048576, 1048576, note, nbd.CMD_FLAG_REQ_ONE)
o.set_strict_mode(0)
def ignore(name, offset, entries, error):
    pass
print(json.dumps({
  "listed": listed,
  "other": o.can_meta_context("qemu:dirty-bitmap:none"),
  "said": said,
  "beyond": error_of(lambda: o.block_status(2, size - 1, ignore)),
}))
o.shutdown()
h.shutdown()
`,
    )
    const MIB = 1024 * 1024
    t.same(result, {
      listed: ['base:allocation'],
      other: false,
      said: [
        ['base:allocation', 0, [MIB, 3, MIB, 0, SIZE - 2 * MIB, 3]],
        ['base:allocation', MIB, [MIB, 0]],
      ],
      beyond: 'EINVAL',
    })
    t.same(await server.stop(), CLEAN_EXIT)
  })

  void t.test(`a large write of zeroes and a cache are served by ${backend}`, async (t) => {
    const { server, uri } = await serveDisk(t, backend, 3 * 1024 ** 3)
    const result = await libnbd(
      t,
      uri,
      `
h.pwrite(b"x" * 100, 2 << 30)
h.zero(size, 0, nbd.CMD_FLAG_FAST_ZERO)
zeroed = h.pread(100, 2 << 30) == bytes(100)
h.trim(size, 0)
cached = error_of(lambda: h.cache(size, 0))
print(json.dumps({"zeroed": zeroed, "cached": cached, "can": h.can_cache()}))
h.shutdown()
`,
    )
    const can = backend === 'aio'
    t.same(result, { zeroed: true, cached: can ? 'accepted' : 'EINVAL', can })
    t.same(await server.stop(), CLEAN_EXIT)
  })
}
