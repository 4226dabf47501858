/**
 * What a client of the oldest kind says, as bytes: for clients that are apart from colotap's own, and may be cut anywhere.
 * Wire format: the NBD protocol's "Fixed newstyle negotiation" with NBD_OPT_EXPORT_NAME, and compact requests.
 */

/** Flags from the client: fixed newstyle and no zeroes after the export's size. */
const CLIENT_FLAGS = 0x3
const OPTION_MAGIC = 'IHAVEOPT'
const NBD_OPT_EXPORT_NAME = 1
const NBD_REQUEST_MAGIC = 0x25609513
const NBD_CMD_READ = 0

/** Flags and the option that enters the transmission phase of the export. */
export function entering(exportName: string): Buffer {
  const option = Buffer.alloc(4 + 8 + 4 + 4 + Buffer.byteLength(exportName))
  option.writeUInt32BE(CLIENT_FLAGS, 0)
  option.write(OPTION_MAGIC, 4)
  option.writeUInt32BE(NBD_OPT_EXPORT_NAME, 12)
  option.writeUInt32BE(Buffer.byteLength(exportName), 16)
  option.write(exportName, 20)
  return option
}

/** A request to read `length` bytes at `at`; its cookie is 0. */
export function readRequest(at: number, length: number): Buffer {
  const request = Buffer.alloc(28)
  request.writeUInt32BE(NBD_REQUEST_MAGIC, 0)
  request.writeUInt16BE(NBD_CMD_READ, 6)
  request.writeBigUInt64BE(BigInt(at), 16)
  request.writeUInt32BE(length, 24)
  return request
}
