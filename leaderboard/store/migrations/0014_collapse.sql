-- Of comparisons: what shows that the model collapsed, as a JSON list of sentences; '[]' where its answers show that it did not, NULL where the
-- task cannot tell (it has no right answers). The verdict `collapsed` follows from it, on all tasks of the same weights that cannot tell.
ALTER TABLE comparisons ADD COLUMN collapse VARCHAR;
