"""The wire contract: topics, messages, codecs, chunks and signatures. Pure, but for `aio`."""
