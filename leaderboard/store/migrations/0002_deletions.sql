-- Append-only: the last row of a run says whether it is deleted. Its folder stays, so that ingest must remember to leave it out.
CREATE TABLE deletions (
    run_id    VARCHAR NOT NULL,
    path      VARCHAR NOT NULL,
    logged_at TIMESTAMP NOT NULL,
    deleted   BOOLEAN NOT NULL,   -- false: taken back
    reason    VARCHAR NOT NULL
);
