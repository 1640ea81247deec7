-- Of comparisons: the 95 % limits of the improvement where they do not follow from those of the difference, since the metric's best value lies
-- in the middle; else NULL.
ALTER TABLE comparisons ADD COLUMN improvement_low DOUBLE;
ALTER TABLE comparisons ADD COLUMN improvement_high DOUBLE;
