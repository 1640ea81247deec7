-- Of comparisons: the share of right answers that guessing among a document's choices gets, or always taking the same one where that finds more;
-- and whether the run's right answers are shown to be more; NULL for metrics that do not count right answers among choices.
ALTER TABLE comparisons ADD COLUMN chance DOUBLE;
ALTER TABLE comparisons ADD COLUMN beats_chance BOOLEAN;
