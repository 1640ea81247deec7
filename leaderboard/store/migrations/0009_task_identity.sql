-- Which task a run scored, and which of its documents; and what was asked beside the recipe. NULL: the run's files do not say. In runs ingested before, `identity`, `config_hash` and most of `asked` are empty until `ingest --rebuild`.
ALTER TABLE run_tasks ADD COLUMN identity VARCHAR;      -- digest of the task's configuration, code and data
ALTER TABLE run_tasks ADD COLUMN config_hash VARCHAR;   -- version of lm-eval and digests of the task's configuration
ALTER TABLE run_tasks ADD COLUMN subset VARCHAR;        -- which documents were scored; NULL: all
ALTER TABLE runs ADD COLUMN asked VARCHAR;              -- JSON, name -> words
UPDATE runs SET asked = '{"limit":"limit ' || regexp_extract(settings, '"limit":([0-9.]+)', 1).regexp_replace('\.0*$', '') || '"}'
WHERE regexp_matches(settings, '"limit":[0-9.]*[1-9]');
UPDATE run_tasks SET subset = r.asked[11:-3] FROM runs r WHERE r.run_id = run_tasks.run_id AND r.asked IS NOT NULL;
