-- Of matrices: the rank that the budget came to, before it was aligned for speed; NULL where no budget was asked, or the receipt does not say.
ALTER TABLE receipts ADD COLUMN rank_asked BIGINT;
CREATE OR REPLACE VIEW v_matrices AS
SELECT v.model_name AS model, v.recipe_label AS recipe, v.control, v.control_of, m.step, m.method, m.name, m.part, m.role, m.layer, m.shape,
    m.rank_before, m.rank_after, m.energy_kept, m.relative_error, m.parameters_before, m.parameters_after, m.bias_shift, m.fallback, m.stored,
    m.decomposition, m.excess_error, m.seconds, r.status, r.path, r.run_id, m.position, v.recipe_id, v.model_key, m.rank_asked
FROM receipts m JOIN runs r USING (run_id) JOIN variants v USING (variant_id);
