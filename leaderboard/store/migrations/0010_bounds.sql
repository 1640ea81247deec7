-- A task's own bound: by how much one document counts at most in a comparison of this metric.
ALTER TABLE scores ADD COLUMN bound DOUBLE;

-- Of comparisons whose documents may lie beyond the bound, as JSON: the bound, how many lost and gained more, the limit of the lost share, and the
-- improvement with every document counted whole. NULL for others.
ALTER TABLE comparisons ADD COLUMN clipping VARCHAR;
