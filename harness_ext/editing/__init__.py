"""From a recipe to an edited model: plan, pipeline, records, controls and warnings."""
