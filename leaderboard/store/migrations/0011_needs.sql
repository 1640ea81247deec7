-- What the number of documents that decide rests on, as JSON: that number depends on how many comparisons a board has, so it is worked out for
-- every board. documents_needed and detectable, which were of a comparison by itself, stay empty from here on.
ALTER TABLE comparisons ADD COLUMN needs VARCHAR;
