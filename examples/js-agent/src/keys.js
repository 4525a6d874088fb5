// SHA-256 and Ed25519, in JavaScript alone: WebCrypto is missing on pages that came over plain HTTP.

import { ed25519 } from "@noble/curves/ed25519.js";
import { sha256 as nobleSha256 } from "@noble/hashes/sha2.js";

export const sha256 = (bytes) => nobleSha256(bytes);
export const newSecret = () => crypto.getRandomValues(new Uint8Array(32));
export const publicKeyOf = (secret) => ed25519.getPublicKey(secret);
export const keyIdOf = (publicKey) => sha256(publicKey).slice(0, 8);
export const sign = (message, secret) => ed25519.sign(message, secret);

/** Whether `signature` is right by RFC 8032's own rules. */
export function verify(signature, message, publicKey) {
  try {
    return ed25519.verify(signature, message, publicKey, { zip215: false });
  } catch {
    return false;
  }
}
