-- Decisions are files beside the store as well (store/decisions.py): each has an id and a place in their order. No clock decides which of two is later.
ALTER TABLE baselines ADD COLUMN IF NOT EXISTS path VARCHAR;          -- where the run lay, relative to the store's folder if below it
ALTER TABLE baselines ADD COLUMN IF NOT EXISTS decision_id VARCHAR;
ALTER TABLE baselines ADD COLUMN IF NOT EXISTS sequence BIGINT;
ALTER TABLE blessings ADD COLUMN IF NOT EXISTS path VARCHAR;
ALTER TABLE blessings ADD COLUMN IF NOT EXISTS decision_id VARCHAR;
ALTER TABLE blessings ADD COLUMN IF NOT EXISTS sequence BIGINT;
ALTER TABLE gate_runs ADD COLUMN IF NOT EXISTS decision_id VARCHAR;
ALTER TABLE gate_runs ADD COLUMN IF NOT EXISTS sequence BIGINT;
ALTER TABLE deletions ADD COLUMN IF NOT EXISTS decision_id VARCHAR;
ALTER TABLE deletions ADD COLUMN IF NOT EXISTS sequence BIGINT;

CREATE OR REPLACE VIEW model_states AS
SELECT v.model_key, md5(string_agg(r.run_id, ' ' ORDER BY r.run_id)
    || coalesce(' ' || (SELECT last(b.run_id ORDER BY b.rowid) FROM baselines b WHERE b.model_key = v.model_key), '')) AS state
FROM runs r JOIN variants v USING (variant_id)
GROUP BY v.model_key;
