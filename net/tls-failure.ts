/** Why a TLS handshake failed, in words for an operator, from the codes of OpenSSL and node:tls. */

export const SPEAKS_NO_TLS = 'it does not speak TLS'

/** What the other side did, as our side sees it: codes that our own OpenSSL raised. */
const SEEN = new Map(
  Object.entries({
    ERR_SSL_WRONG_VERSION_NUMBER: SPEAKS_NO_TLS,
    ERR_SSL_HTTP_REQUEST: SPEAKS_NO_TLS,
    ERR_SSL_HTTPS_PROXY_REQUEST: SPEAKS_NO_TLS,
    ERR_SSL_PACKET_LENGTH_TOO_LONG: SPEAKS_NO_TLS,
    ERR_SSL_BAD_PROTOCOL_VERSION_NUMBER: SPEAKS_NO_TLS,
    ERR_SSL_RECORD_LAYER_FAILURE: SPEAKS_NO_TLS,
    ERR_SSL_UNSUPPORTED_PROTOCOL: 'it speaks only versions of TLS that are too old',
    ERR_SSL_VERSION_TOO_LOW: 'it speaks only versions of TLS that are too old',
    ERR_SSL_NO_SHARED_CIPHER: 'it offers no cipher suite that is accepted here',
    ERR_SSL_BINDER_DOES_NOT_VERIFY: 'its pre-shared key is another one',
    ERR_SSL_DECRYPTION_FAILED_OR_BAD_RECORD_MAC:
      'its pre-shared key is another one, or data was changed on the way',
    ERR_SSL_PSK_IDENTITY_NOT_FOUND: 'its pre-shared key is not known here',
    ERR_SSL_NO_SUITABLE_SIGNATURE_ALGORITHM: 'it did not offer a pre-shared key that is known here',
    ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE: 'it showed no certificate',
    ECONNRESET: 'it ended the connection before it was secured',
    EPIPE: 'it ended the connection before it was secured',
    CERT_HAS_EXPIRED: 'its certificate has expired',
    CERT_NOT_YET_VALID: 'its certificate is not valid yet',
    CERT_REVOKED: 'its certificate was revoked',
    CRL_HAS_EXPIRED: 'the revocation list here (ca-crl.pem) has expired',
    UNABLE_TO_GET_CRL: 'there is no revocation list of its authority here (ca-crl.pem)',
    INVALID_PURPOSE: 'its certificate is not made for this use (extended key usage)',
    CERT_SIGNATURE_FAILURE: 'its certificate is not signed by the ca-cert.pem here',
    DEPTH_ZERO_SELF_SIGNED_CERT: 'its certificate is not signed by the ca-cert.pem here',
    SELF_SIGNED_CERT_IN_CHAIN: 'its certificate is not signed by the ca-cert.pem here',
    UNABLE_TO_GET_ISSUER_CERT: 'its certificate is not signed by the ca-cert.pem here',
    UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'its certificate is not signed by the ca-cert.pem here',
    UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'its certificate is not signed by the ca-cert.pem here',
  }),
)

/** What the other side says of ours: alerts that it sent (RFC 8446, section 6.2). */
const TOLD = new Map(
  Object.entries({
    HANDSHAKE_FAILURE: 'our kind of credentials, or our pre-shared key',
    ILLEGAL_PARAMETER: 'our pre-shared key',
    DECRYPT_ERROR: 'our pre-shared key',
    BAD_RECORD_MAC: 'our pre-shared key',
    UNKNOWN_PSK_IDENTITY: 'the user name of our pre-shared key',
    UNKNOWN_CA: 'the authority that signed our certificate',
    BAD_CERTIFICATE: 'our certificate',
    CERTIFICATE_EXPIRED: 'our certificate, which it finds expired',
    CERTIFICATE_REVOKED: 'our certificate, which it finds revoked',
    CERTIFICATE_UNKNOWN: 'our certificate',
    UNSUPPORTED_CERTIFICATE: 'the kind of our certificate',
    CERTIFICATE_REQUIRED: 'a connection without a certificate',
    ACCESS_DENIED: 'this side',
    PROTOCOL_VERSION: 'our version of TLS',
    INSUFFICIENT_SECURITY: 'our cipher suites',
  }),
)

/** Half a sentence about the other side, such as `it does not speak TLS`. */
export function describeTlsFailure(error: Error): string {
  const { code } = error as NodeJS.ErrnoException
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') return describeNames(error as NameMismatch)
  const seen = SEEN.get(code ?? '')
  if (seen !== undefined) return seen
  const alert = /^ERR_SSL_(?:SSLV3|TLSV1|TLSV13)_ALERT_(.+)$/.exec(code ?? '')?.[1]
  if (alert !== undefined) {
    const told = TOLD.get(alert)
    return told === undefined ? `it sent the alert ${alert}` : `it does not accept ${told}`
  }
  return `the TLS handshake failed: ${plainMessage(error)}`
}

/** What checkServerIdentity gives beside its message. */
interface NameMismatch {
  readonly host?: string
  readonly cert?: { readonly subject?: { readonly CN?: string }; readonly subjectaltname?: string }
}

function describeNames({ host, cert }: NameMismatch): string {
  const names = cert?.subjectaltname ?? `CN ${String(cert?.subject?.CN)}`
  return `its certificate is for ${names.slice(0, 300)}, not for ${String(host)}`
}

/** OpenSSL's messages are `thread:error:code:library:function:reason:file:line:`; the reason is what people read. */
function plainMessage({ message }: Error): string {
  const reason = /:error:[0-9A-F]+:[^:]*:[^:]*:([^:]+):/.exec(message)?.[1]
  return (reason ?? message).trim().slice(0, 200)
}
