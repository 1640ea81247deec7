-- A task's own bound: by how much one document counts at most in a comparison of this metric.
ALTER TABLE scores ADD COLUMN bound DOUBLE;

-- Of comparisons whose documents may lie beyond the bound; NULL for others.
ALTER TABLE comparisons ADD COLUMN clipped_at DOUBLE;      -- the bound, in the metric's units
ALTER TABLE comparisons ADD COLUMN far_lost INTEGER;       -- documents that lost more than that
ALTER TABLE comparisons ADD COLUMN far_gained INTEGER;
ALTER TABLE comparisons ADD COLUMN far_lost_limit DOUBLE;  -- exact one-sided 95 % upper limit of the lost share
ALTER TABLE comparisons ADD COLUMN plain_improvement DOUBLE;  -- with every document counted whole
