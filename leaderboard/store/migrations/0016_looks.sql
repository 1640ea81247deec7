-- What each run found was when `ingest` last read it, so that it is read again only where its files or the code that reads them have changed.
-- Follows from the files; nothing is lost with it. Readers of the store need none of it.
CREATE TABLE looks (
    place    VARCHAR NOT NULL,   -- of the run found or of a samples file, as in runs.path
    stamp    VARCHAR NOT NULL,   -- digest of its files' names, sizes, times and numbers, and of the code that reads them
    outcomes VARCHAR NOT NULL,   -- JSON: what reading it gave
    runs     VARCHAR             -- state of all runs of the store for which that holds; NULL: for any
);
