-- How a matrix was decomposed, how far that is from the least possible error at most, and whether the model computes with its factors. Empty in runs ingested before, until `ingest --rebuild`.
ALTER TABLE receipts ADD COLUMN stored VARCHAR;         -- dense | factors
ALTER TABLE receipts ADD COLUMN decomposition VARCHAR;
ALTER TABLE receipts ADD COLUMN excess_error DOUBLE;
