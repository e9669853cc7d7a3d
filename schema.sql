-- schema.sql - the tables and views of a batchd database, version 3.
--
-- One file holds the queue and the results. Times that end in _at or _us next to
-- "wall" are microseconds since 1970 UTC, for people; durations (*_us) come from a
-- monotonic clock. A request and its result share one id: job_id << 32 | row.
--
-- The views jobs, metrics, failures and rejects work in any sqlite3. The view results
-- also shows text, which is compressed: load batchd_sqlite.so first, or use `batchd sql`.

CREATE TABLE meta (                    -- schema_version, created_by
  key TEXT PRIMARY KEY,
  value ANY
) STRICT, WITHOUT ROWID;

CREATE TABLE daemon (                  -- one row: who may write results
  id INTEGER PRIMARY KEY CHECK (id = 1),
  epoch INTEGER NOT NULL,              -- the fence: raised by every daemon that starts
  pid INTEGER,
  device TEXT,
  state TEXT,                          -- for people: starting, idle, running, draining, stopped
  started_at INTEGER,                  -- wall
  beat_at INTEGER                      -- wall, every few seconds
) STRICT;

CREATE TABLE model (                   -- registered names
  model_id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  path TEXT NOT NULL,                  -- absolute folder
  files TEXT NOT NULL,                 -- JSON [{"name","size","mtime_us","sha256"}]
  added_at INTEGER NOT NULL            -- wall
) STRICT;

CREATE TABLE weights (                 -- what model folders held when jobs ran on them
  weights_id INTEGER PRIMARY KEY,
  sha256 TEXT NOT NULL UNIQUE,         -- of whole and of every name, size and hash in files: says which weights these are
  whole INTEGER NOT NULL CHECK (whole IN (0, 1)), -- 1: hashes of all bytes (a registered model);
                                       -- 0: of safetensors files the hash of their header alone
  path TEXT NOT NULL,                  -- absolute folder where they were met first
  files TEXT NOT NULL,                 -- JSON [{"name","size","sha256"}]
  met_at INTEGER NOT NULL              -- wall
) STRICT;

CREATE TABLE family (                  -- jobs alike: same model, template and system text
  family_id INTEGER PRIMARY KEY,
  hash TEXT NOT NULL UNIQUE,           -- sha256 of the three
  dict_id INTEGER,                     -- zdict for its completions, NULL = none yet
  lengths TEXT                         -- JSON histogram of completion lengths, NULL = none yet
) STRICT;

CREATE TABLE job (                     -- one submitted file
  job_id INTEGER PRIMARY KEY AUTOINCREMENT,
  key TEXT UNIQUE,                     -- idempotency key, NULL = none
  name TEXT,
  state TEXT NOT NULL CHECK (state IN ('loading','queued','running','done','partial','failed','cancelled')),
  priority INTEGER NOT NULL DEFAULT 0 CHECK (priority BETWEEN -100 AND 100),
  family_id INTEGER REFERENCES family,
  model TEXT,                          -- absolute folder or registered name, NULL = the daemon's default
  dtype TEXT, quantization TEXT, kv_cache_dtype TEXT, max_model_len INTEGER,
  template TEXT,                       -- {column} template, NULL = none
  system TEXT,                         -- first message of every row, NULL = none
  chat TEXT NOT NULL DEFAULT 'auto',   -- auto, always, never
  seed INTEGER NOT NULL DEFAULT 0,
  params TEXT NOT NULL DEFAULT '{}',   -- JSON: sampling defaults of the rows
  columns TEXT,                        -- JSON array of the input's column names, NULL for JSONL
  prompt_column TEXT,                  -- column or key that holds the prompt
  id_column TEXT,
  source_name TEXT,
  content TEXT NOT NULL,               -- sha256 of the input and of all settings that change results
  n_rows INTEGER NOT NULL DEFAULT 0,
  n_done INTEGER NOT NULL DEFAULT 0,   -- results with status ok
  n_failed INTEGER NOT NULL DEFAULT 0,
  n_rejected INTEGER NOT NULL DEFAULT 0,
  prompt_tokens INTEGER NOT NULL DEFAULT 0,
  cached_tokens INTEGER NOT NULL DEFAULT 0,
  completion_tokens INTEGER NOT NULL DEFAULT 0,
  submitted_at INTEGER NOT NULL,       -- wall
  started_at INTEGER, finished_at INTEGER,
  export_path TEXT, export_mark TEXT,  -- the last export, so that `run -o` may replace its own file
  error TEXT,
  chat_settings TEXT,                  -- JSON: template, kwargs, allow_special_tokens; NULL = the model's template
  weights_id INTEGER REFERENCES weights -- that all its results are made with; NULL = none yet, or before version 3
) STRICT;
CREATE INDEX job_ready ON job(priority DESC, job_id) WHERE state IN ('queued','running');

CREATE TABLE lease (                   -- consecutive requests handed to one engine
  job_id INTEGER NOT NULL REFERENCES job ON DELETE CASCADE,
  lease_no INTEGER NOT NULL,
  first_row INTEGER NOT NULL,
  n_rows INTEGER NOT NULL,
  state INTEGER NOT NULL DEFAULT 0,    -- 0 ready, 1 leased, 2 done or dropped
  epoch INTEGER,                       -- of the daemon that holds it
  PRIMARY KEY (job_id, lease_no)
) STRICT, WITHOUT ROWID;
CREATE INDEX lease_ready ON lease(job_id, lease_no) WHERE state = 0;
CREATE INDEX lease_taken ON lease(epoch) WHERE state = 1;

CREATE TABLE request (                 -- one accepted row; never changes
  id INTEGER PRIMARY KEY,
  custom_id TEXT,
  input ANY NOT NULL,                  -- JSON: array of cells, or the line's object; TEXT, or a zstd frame
  params TEXT                          -- JSON: the row's own sampling keys, NULL = none
) STRICT;

CREATE TABLE result (                  -- a request's outcome; its absence means "not yet"
  id INTEGER PRIMARY KEY REFERENCES request ON DELETE CASCADE,
  status INTEGER NOT NULL CHECK (status IN (0, 1)),       -- 0 ok, 1 failed
  finish INTEGER NOT NULL CHECK (finish IN (0, 1, 2)),    -- 0 stop, 1 length, 2 error
  codec INTEGER NOT NULL,              -- 0 text, 1 zstd, 2 zstd with a dictionary of zdict
  completion ANY,
  prompt_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
  wait_us INTEGER, queue_us INTEGER, prefill_us INTEGER, ttft_us INTEGER, decode_us INTEGER, e2e_us INTEGER,
  preemptions INTEGER NOT NULL, attempt INTEGER NOT NULL,
  seed INTEGER NOT NULL,
  epoch INTEGER NOT NULL,              -- of the daemon that wrote it
  finished_at INTEGER NOT NULL,        -- wall
  error_code TEXT, error TEXT,
  logprobs ANY, prompt_logprobs ANY,   -- JSON, as TEXT or as a zstd frame; NULL = not asked for
  CHECK ((codec = 0) = (typeof(completion) IN ('text', 'null')))
) STRICT;
CREATE INDEX result_failed ON result(id) WHERE status <> 0;

CREATE TABLE choice (                  -- further completions of a request, for n > 1
  id INTEGER NOT NULL REFERENCES request ON DELETE CASCADE,
  choice_no INTEGER NOT NULL,
  finish INTEGER NOT NULL,
  codec INTEGER NOT NULL,
  completion ANY,
  completion_tokens INTEGER NOT NULL,
  PRIMARY KEY (id, choice_no)
) STRICT, WITHOUT ROWID;

CREATE TABLE zdict (                   -- zstd dictionaries, raw: writefile() and `zstd -D` can use them
  dict_id INTEGER PRIMARY KEY,         -- zstd's own number
  family_id INTEGER REFERENCES family,
  created_at INTEGER NOT NULL,         -- wall
  dict BLOB NOT NULL
) STRICT;

CREATE TABLE reject (                  -- input lines that did not become requests
  job_id INTEGER NOT NULL REFERENCES job ON DELETE CASCADE,
  line INTEGER NOT NULL,               -- 1 = first physical line
  byte INTEGER NOT NULL,               -- offset of the line's first byte
  code TEXT NOT NULL,
  message TEXT NOT NULL,
  PRIMARY KEY (job_id, line)
) STRICT, WITHOUT ROWID;

-- Views come last: a database of an older version gets them anew.
CREATE VIEW jobs AS
  SELECT job_id, key, name, state, priority, model, n_rows, n_done, n_failed, n_rejected,
         CASE WHEN n_rows > 0 THEN round(100.0 * (n_done + n_failed) / n_rows, 1) END AS percent,
         prompt_tokens, cached_tokens, completion_tokens,
         datetime(submitted_at / 1000000, 'unixepoch') AS submitted,
         datetime(started_at / 1000000, 'unixepoch') AS started,
         datetime(finished_at / 1000000, 'unixepoch') AS finished,
         CASE WHEN finished_at > started_at
              THEN round(completion_tokens * 1e6 / (finished_at - started_at), 1) END AS tokens_per_s,
         error, (SELECT sha256 FROM weights w WHERE w.weights_id = job.weights_id) AS weights
  FROM job;

-- Every finished row with its latencies; `error` is a code, failures has the message too.
-- The join is by ranges of ids, so that WHERE job_id = 2 reads that job's rows only.
CREATE VIEW metrics AS
  SELECT j.job_id AS job_id, r.id - (j.job_id << 32) AS row, q.custom_id AS custom_id,
         CASE r.status WHEN 0 THEN 'ok' ELSE 'failed' END AS status,
         CASE r.finish WHEN 0 THEN 'stop' WHEN 1 THEN 'length' ELSE 'error' END AS finish_reason,
         r.prompt_tokens AS prompt_tokens, r.cached_tokens AS cached_tokens,
         r.completion_tokens AS completion_tokens,
         r.wait_us / 1000.0 AS wait_ms, r.queue_us / 1000.0 AS queue_ms, r.prefill_us / 1000.0 AS prefill_ms,
         r.ttft_us / 1000.0 AS ttft_ms, r.decode_us / 1000.0 AS decode_ms,
         CASE WHEN r.completion_tokens >= 2 THEN r.decode_us / 1000.0 / (r.completion_tokens - 1) END AS tpot_ms,
         r.e2e_us / 1000.0 AS e2e_ms, r.preemptions AS preemptions, r.attempt AS attempt,
         r.error_code AS error
  FROM job j
  JOIN result r ON r.id BETWEEN (j.job_id << 32) AND (j.job_id << 32) + 4294967295
  JOIN request q ON q.id = r.id;

CREATE VIEW failures AS
  SELECT j.job_id AS job_id, r.id - (j.job_id << 32) AS row, q.custom_id AS custom_id,
         r.error_code AS code, r.error AS message, r.attempt AS attempt,
         datetime(r.finished_at / 1000000, 'unixepoch') AS finished
  FROM job j
  JOIN result r ON r.id BETWEEN (j.job_id << 32) AND (j.job_id << 32) + 4294967295 AND r.status <> 0
  JOIN request q ON q.id = r.id;

CREATE VIEW rejects AS SELECT job_id, line, byte, code, message FROM reject;

-- Needs batchd_sqlite.so: metrics, and the text.
CREATE VIEW results AS
  SELECT m.*, batchd_prompt(q.input, j.template, j.columns, j.prompt_column) AS prompt,
         batchd_text(r.completion) AS completion, j.model AS model, w.sha256 AS weights
  FROM metrics m
  JOIN job j ON j.job_id = m.job_id
  JOIN result r ON r.id = (m.job_id << 32) + m.row
  JOIN request q ON q.id = r.id
  LEFT JOIN weights w ON w.weights_id = j.weights_id;
