-- What results files say besides their scores. NULL in runs ingested before, until they are read again.
ALTER TABLE run_tasks ADD COLUMN sample_count BIGINT;  -- documents as the results file counts them, samples or not
ALTER TABLE runs ADD COLUMN former_id VARCHAR;         -- the id by the formula of earlier versions, where it was another
ALTER TABLE runs ADD COLUMN edited BOOLEAN;            -- whether the model was edited; NULL: the files do not say
ALTER TABLE verdicts ADD COLUMN unpaired BOOLEAN;      -- delta, low and high are of two scores by themselves, not paired by document
