-- Schema 2: which URL answered 410, so that an endpoint that gets another one is sent to again. Null where it is not known.
ALTER TABLE endpoint ADD COLUMN stopped_url BLOB; -- SHA-256
