/* The loops of kernels.py in C, equal to them bit for bit: the docstrings there say what each does and why.
 *
 * What is changed here has to be changed there. A sum is left out where it is known to be 0 (no prompt is queued, no
 * step is full); the order of all others is that of the Python loops.
 */
#include "_loops.h"

typedef struct {
    double now_s, prompt_tokens, mean_prompt_tokens, mean_output_tokens, held_tokens, tau_s, peer_tokens_per_s;
} Work;

/* Rows by slot; `columns` and `load_bias` have a row a fact, of which `*_end` is the length. */
typedef struct {
    const double *columns, *prior, *factor, *roofs;
    npy_intp columns_end;
} Facts;

typedef struct {
    const double *prior, *roof, *factor;
    npy_intp slot;
    double prefilling, queued, batch, context, own, cached, each, room, first, left, full, last, growing, rows;
    double over_batch_s, fixed_s, seq_s, context_s, token_factor, token_s, pair_s, first_s, step_s, scheduled_s;
} Engine;

typedef struct {
    double steps, waiting, tokens, prompt_s, pair_s;
} Ahead;

static inline double fact(const Facts *f, int row, npy_intp slot) { return f->columns[row * f->columns_end + slot]; }

static inline double roof_s(const double *roof, const double *prior, double tokens) {
    double place = sqrt(tokens) * prior[SCALE];
    npy_intp below = place_below(place, ROOF_POINTS - 2);
    double low = roof[below], high = roof[below + 1];
    return low + (place - (double)below) * (high - low);
}

/* `rows`: of the forecast, which has `count` columns. */
static inline Engine engine(const Facts *f, const double *rows, npy_intp count, npy_intp slot, npy_intp i,
                            double prompt_tokens, double sequences) {
    Engine e;
    e.slot = slot;
    const double *prior = e.prior = f->prior + slot * PRIOR, *factor = e.factor = f->factor + slot * TERMS;
    e.roof = f->roofs + slot * ROOF_POINTS;
    e.prefilling = rows[(LOADS + PREFILLING) * count + i];
    e.batch = rows[(LOADS + DECODING) * count + i];
    e.context = rows[(LOADS + CONTEXT_TOKENS) * count + i];
    e.queued = max2(rows[(LOADS + PREFILL_TOKENS) * count + i], 0.0);
    e.cached = rows[CACHED * count + i];
    e.own = prompt_tokens - e.cached;
    double busy = min2(e.batch + e.queued, 1.0);
    e.room = max2(fact(f, CHUNK_TOKENS, slot) - e.batch, 1.0);
    e.first = min2(e.queued, e.room);
    e.left = e.queued - e.first + e.own;
    e.full = max2(ceil(e.left / e.room) - 1.0, 0.0);
    e.rows = e.batch * prior[SHARE];
    e.over_batch_s = roof_s(e.roof, prior, e.rows);
    e.fixed_s = (prior[FIXED] + e.over_batch_s) * factor[FIXED];
    e.seq_s = prior[SEQ] * factor[SEQ];
    e.context_s = prior[CONTEXT] * factor[CONTEXT];
    e.step_s = e.fixed_s + e.seq_s * e.batch + e.context_s * e.context;
    e.each = e.queued / max2(e.prefilling, 1.0);
    e.last = e.left - e.full * e.room;
    e.growing = min2(e.batch + e.prefilling + sequences, fact(f, SEQS_MAX, slot));
    e.token_factor = factor[TOKEN];
    e.token_s = prior[TOKEN] * factor[TOKEN];
    e.pair_s = prior[PAIR] * factor[PAIR];
    e.first_s = prior[FIRST] * factor[FIRST];
    e.scheduled_s = busy * prior[AHEAD] * factor[AHEAD] * e.step_s;
    return e;
}

static inline double beyond_s(const Engine *e, double prompt_tokens) {
    double over_s = roof_s(e->roof, e->prior, prompt_tokens + e->rows) - e->over_batch_s;
    double eager_s = e->prior[EAGER] * min2(prompt_tokens, 1.0);
    return sqrt(over_s * over_s + eager_s * eager_s);
}

static inline double under_way(const Facts *f, const Engine *e, double first_roof_s, double now_s) {
    double unanswered_s = now_s - fact(f, RATE_AT_S, e->slot);
    if (fact(f, PREFILLING, e->slot) <= 0.0 || unanswered_s < 0.0 || !(0.0 < e->queued && e->queued <= e->room))
        return e->batch + e->queued > 0.0 ? 0.5 : 0.0;
    double prompt_s = e->token_factor * first_roof_s + e->first * (e->token_s + e->pair_s * (0.5 * e->each));
    double joined_s = max2(unanswered_s - e->step_s, 0.0) + 0.5 * e->step_s;
    double gone_s = e->batch > 0.0 ? joined_s : unanswered_s;
    return min2(1.0, max2(LEFT_MIN, 1.0 - gone_s / (e->step_s + prompt_s)));
}

static inline double steps_to_room(const Facts *f, const Engine *e, const Work *work) {
    double requests = e->prefilling + e->batch, held = e->queued + e->context, seqs_max = fact(f, SEQS_MAX, e->slot);
    double over = requests + 1.0 - seqs_max;
    double kv_over = held + work->held_tokens - fact(f, KV_TOKENS_MAX, e->slot);
    double ahead = max3(over, kv_over / work->held_tokens, 0.0);
    return ahead * work->mean_output_tokens / max2(min2(requests, seqs_max), 1.0);
}

static inline Ahead ahead_of(const Facts *f, const Engine *e, const Work *work) {
    Ahead a;
    double first_roof_s = e->first == 0.0 ? 0.0 : beyond_s(e, e->first);
    double share = under_way(f, e, first_roof_s, work->now_s);
    a.waiting = steps_to_room(f, e, work);
    a.tokens = e->left + share * e->first;
    double pairs = e->own * (e->cached + 0.5 * e->own) + (a.tokens - e->own) * (0.5 * e->each);
    double over_s = share * first_roof_s + beyond_s(e, e->last);
    if (e->full > 0.0) over_s += e->full * beyond_s(e, e->room);
    a.steps = e->full + share + 1.0 + a.waiting;
    a.prompt_s = over_s * e->token_factor + e->token_s * a.tokens;
    a.pair_s = pairs * e->pair_s;
    return a;
}

static inline double first_token_s(const Facts *f, const Engine *e, const Ahead *a) {
    double network_s = fact(f, NETWORK_S, e->slot);
    return a->steps * e->step_s + e->scheduled_s + network_s + a->prompt_s + a->pair_s + e->first_s;
}

static inline double step_of_life_s(const Facts *f, const Engine *e, double held) {
    double over_batch_s = roof_s(e->roof, e->prior, e->growing * e->prior[SHARE]);
    double fixed_s = (e->prior[FIXED] + over_batch_s) * e->factor[FIXED];
    held = min2(e->context + e->queued + held, fact(f, KV_TOKENS_MAX, e->slot));
    return fixed_s + e->seq_s * e->growing + e->context_s * held;
}

static inline double tokens_per_s(const Facts *f, npy_intp slot, const Work *work) {
    double own = fact(f, PREFILL_RATE, slot) * exp((fact(f, RATE_AT_S, slot) - work->now_s) / work->tau_s);
    double others = fact(f, PEERS + DECODING, slot) - fact(f, COUNTED_PEERS, slot) +
                    fact(f, UNATTRIBUTED + DECODING, slot);
    return own + others * work->peer_tokens_per_s;
}

static inline double prefill_share(const Facts *f, const Engine *e, const Work *work, int full, double step_s) {
    double mean = work->mean_prompt_tokens, piece = min2(mean, e->room), share;
    double each_s = e->token_factor * (beyond_s(e, piece) / piece) + e->token_s + e->pair_s * (mean / 2.0);
    if (full) {
        double taken_in = e->growing * mean * each_s / (work->mean_output_tokens * step_s);
        share = taken_in / (1.0 + taken_in);
    } else {
        share = each_s * tokens_per_s(f, e->slot, work);
    }
    return min2(share, PREFILL_SHARE_MAX);
}

/* `unreported`: as many rows as there are loads, or 0. `load`: a row for each load, of `count` places. */
static void gather(const Facts *f, const npy_intp *slots, npy_intp count, const double *unreported,
                   npy_intp unreported_rows, double *load) {
    EACH(row, LOAD) {
        const double *own = f->columns + row * f->columns_end, *peers = own + PEERS * f->columns_end;
        const double *unattributed = own + UNATTRIBUTED * f->columns_end;
        EACH(i, count) load[row * count + i] = own[slots[i]] + peers[slots[i]] + unattributed[slots[i]];
    }
    EACH(at, unreported_rows * count) load[at] += unreported[at];
}

/* `spread`: by metric, tracked quantile, band and slot, `end` of these. Bands are 0, 1 and 2. */
static void fill_tails(const double *rows, npy_intp count, const double *spread, npy_intp end, const npy_intp *slots,
                       npy_intp row, double share, double e2e_width, double *out) {
    EACH(metric, METRICS) {
        double width = metric == E2E ? e2e_width : 1.0;
        const double *at = spread + (metric * KEPT_QUANTILES + row) * BANDS * end, *next = at + BANDS * end;
        const double *mean = rows + metric * count, *band = rows + BAND * count;
        double before = 0.0, factor = 1.0; /* of one candidate after the other: those that borrow share a spread */
        EACH(i, count) {
            npy_intp place = (npy_intp)band[i] * end + slots[i];
            double low = at[place];
            if (share != 0.0) low = min2(low + share * (next[place] - low), SPREAD_MOST);
            low *= width;
            if (low != before) factor = exp(before = low);
            out[metric * count + i] = mean[i] * factor;
        }
    }
}

static inline double alive_at(const double *alive, npy_intp bins, double per_octave, double tokens) {
    double place = per_octave * log2(tokens);
    npy_intp below = place_below(place, bins - 2);
    return alive[below] + min2(place - (double)below, 1.0) * (alive[below + 1] - alive[below]);
}

static double ends(const double *alive, npy_intp bins, double per_octave, double past, double by) {
    if (by <= past) return 0.0;
    double reached = alive_at(alive, bins, per_octave, past + 1.0);
    return reached > NONE_REACH ? 1.0 - alive_at(alive, bins, per_octave, by + 1.0) / reached : 0.0;
}

static double made(const Facts *f, const Engine *e, double now_s) {
    double until_s = now_s;
    if (fact(f, PREFILLING, e->slot) > 0.0) until_s = min2(now_s, fact(f, RATE_AT_S, e->slot) + 0.5 * e->step_s);
    double steps = (until_s - fact(f, FIRST_TOKEN_S, e->slot)) / e->step_s;
    return floor(1.0 + max2(0.0, min2(steps, STEPS_MOST)));
}

static double expected_violations(const Facts *f, const Engine *e, double over_s, double spare_s, double now_s,
                                  const double *alive, npy_intp bins, double per_octave) {
    double by = floor(1.0 + over_s / spare_s);
    double some = e->prefilling * ends(alive, bins, per_octave, 1.0, by);
    if (e->batch > 0.0) some += ends(alive, bins, per_octave, made(f, e, now_s), by);
    return some;
}

/* -- arguments ------------------------------------------------------------------------------------------------------ */

/* Columns, prior, factors and roofs, in this order; `end`: of the one that has fewest slots. */
static Facts the_columns(Arguments *all, npy_intp *end) {
    Array columns = read_from(all, NPY_DOUBLE, 2);
    demand(all, columns.shape[0] >= LEDGER, "columns: one row for each fact of the ledger");
    *end = columns.shape[1];
    Facts f = {columns.data, NULL, NULL, NULL, columns.shape[1]};
    return f;
}

static const double *rows_by_slot(Arguments *all, npy_intp width, npy_intp *end, const char *what) {
    Array found = read_from(all, NPY_DOUBLE, 2);
    demand(all, found.shape[1] == width, what);
    *end = least_of(*end, found.shape[0]);
    return found.data;
}

static void the_physics(Arguments *all, Facts *f, npy_intp *end) {
    f->prior = rows_by_slot(all, PRIOR, end, "prior: one column for each term, and three more");
    f->factor = rows_by_slot(all, TERMS, end, "factor: one column for each term");
    f->roofs = rows_by_slot(all, ROOF_POINTS, end, "roofs: one column for each point");
}

static Array the_load_bias(Arguments *all, npy_intp *end) {
    Array load_bias = read_from(all, NPY_DOUBLE, 3);
    demand(all, load_bias.shape[0] == 2 && load_bias.shape[1] == BANDS, "load_bias: by metric, band and slot");
    *end = least_of(*end, load_bias.shape[2]);
    return load_bias;
}

static Array the_spread(Arguments *all, npy_intp *end) {
    Array spread = read_from(all, NPY_DOUBLE, 4);
    demand(all, spread.shape[0] == METRICS && spread.shape[1] == KEPT_QUANTILES && spread.shape[2] == BANDS,
           "spread: by metric, tracked quantile, band and slot");
    *end = least_of(*end, spread.shape[3]);
    return spread;
}

static const npy_intp *the_slots(Arguments *all, npy_intp end, npy_intp *count) {
    Array slots = read_from(all, NPY_INTP, 1);
    *count = slots.shape[0];
    demand_slots(all, slots.data, *count, end);
    return slots.data;
}

static void demand_bands(Arguments *all, const double *bands, npy_intp count) {
    if (all->failed) return;
    EACH(i, count) demand(all, bands[i] >= 0.0 && bands[i] < BANDS, "a band is not 0, 1 or 2");
}

static void demand_unreported(Arguments *all, Array unreported, npy_intp count) {
    int fits = unreported.shape[0] == LOAD && unreported.shape[1] == count;
    demand(all, unreported.shape[0] == 0 || fits, "unreported: a row for each load, or none");
}

/* -- loops ---------------------------------------------------------------------------------------------------------- */

static PyObject *predicted(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("predicted", given, how_many, 26);
    npy_intp end, count;
    Facts f = the_columns(&all, &end);
    Array unreported = read_from(&all, NPY_DOUBLE, 2), hit = read_from(&all, NPY_DOUBLE, 1);
    Array resident = read_from(&all, NPY_DOUBLE, 1);
    double counted = a_float(&all);
    end = least_of(end, hit.shape[0]);
    the_physics(&all, &f, &end);
    Array load_bias = the_load_bias(&all, &end), spread = the_spread(&all, &end);
    const npy_intp *slots = the_slots(&all, end, &count);
    Work work = {.now_s = a_float(&all)};
    work.prompt_tokens = a_float(&all), work.mean_prompt_tokens = a_float(&all);
    double output_tokens = a_float(&all);
    work.mean_output_tokens = a_float(&all), work.held_tokens = a_float(&all);
    double sequences = a_float(&all);
    work.tau_s = a_float(&all), work.peer_tokens_per_s = a_float(&all);
    npy_intp row = an_index(&all, KEPT_QUANTILES);
    double share = a_float(&all), e2e_width = a_float(&all);
    Array alive = read_from(&all, NPY_DOUBLE, 1);
    double per_octave = a_float(&all);
    Array out = written_to(&all, NPY_DOUBLE, 2);
    npy_intp unreported_rows = unreported.shape[0], bins = alive.shape[0];
    demand_unreported(&all, unreported, count);
    demand(&all, resident.shape[0] == 0 || resident.shape[0] == count, "resident: one for each slot, or none");
    demand(&all, share == 0.0 || row + 1 < KEPT_QUANTILES, "row: there is no next tracked quantile");
    demand(&all, bins != 1, "alive: at least two bins, or none");
    demand(&all, out.shape[0] == FORECAST && out.shape[1] == count, "rows: one for each of a forecast, a column a slot");
    if (all.failed) return NULL;

    double *rows = out.data;
    const double *hits = hit.data, *residents = resident.shape[0] > 0 ? resident.data : NULL, *biases = load_bias.data;
    npy_intp bias_end = load_bias.shape[2];
    double after = max2(output_tokens - 1.0, 0.0);
    gather(&f, slots, count, unreported.data, unreported_rows, rows + LOADS * count);
    EACH(i, count) {
        npy_intp slot = slots[i];
        rows[CACHED * count + i] =
            residents != NULL ? residents[i] * hits[slot] * counted : work.prompt_tokens * hits[slot];
        Engine e = engine(&f, rows, count, slot, i, work.prompt_tokens, sequences);
        Ahead a = ahead_of(&f, &e, &work);
        int full = a.waiting > 0.0, band = full ? FULL : e.queued > 0.0;
        double step_s = step_of_life_s(&f, &e, work.held_tokens);
        double busy = prefill_share(&f, &e, &work, full, step_s);
        const double *bias = biases + band * bias_end + slot;
        double ttft_s = first_token_s(&f, &e, &a) * bias[TTFT * BANDS * bias_end];
        double tpot_s = step_s / (1.0 - busy) * bias[TPOT * BANDS * bias_end];
        double over_s = a.prompt_s + a.pair_s;
        double each_s = over_s * e.own / max2(a.tokens, 1.0) +
                        output_tokens * (e.seq_s * sequences + e.context_s * work.held_tokens);
        rows[TTFT * count + i] = ttft_s;
        rows[TPOT * count + i] = tpot_s;
        rows[E2E * count + i] = ttft_s + after * tpot_s;
        rows[BAND * count + i] = band;
        rows[PREFILL_SHARE * count + i] = busy;
        rows[IMPOSED_DELAY_S * count + i] = (e.batch + e.prefilling) * each_s;
        double violations = 0.0;
        if (bins > 0) {
            double spare_s = fact(&f, TPOT_BOUND_S, slot) - e.step_s;
            if (0.0 < spare_s && spare_s < Py_HUGE_VAL && over_s > spare_s)
                violations = expected_violations(&f, &e, over_s, spare_s, work.now_s, alive.data, bins, per_octave);
        }
        rows[EXPECTED_TPOT_VIOLATIONS * count + i] = violations;
    }
    fill_tails(rows, count, spread.data, spread.shape[3], slots, row, share, e2e_width, rows + TAILS * count);
    Py_RETURN_NONE;
}

static PyObject *resident(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("resident", given, how_many, 6);
    npy_intp bytes, count, length;
    const unsigned char *held = some_bytes(&all, &bytes);
    PyObject *runs = a_list(&all, &length);
    const npy_intp *slots = the_slots(&all, NPY_MAX_INTP, &count);
    double block_tokens = a_float(&all), tokens_most = a_float(&all);
    Array filled = written_to(&all, NPY_DOUBLE, 1);
    demand(&all, length > 0, "runs: at least one");
    demand(&all, filled.shape[0] == count, "out: a place for each slot");
    if (all.failed) return NULL;
    npy_intp width = bytes / length;
    double *out = filled.data;
    EACH(i, count) out[i] = 0.0;
    EACH(run, length) {
        double blocks = PyFloat_AsDouble(PyList_GET_ITEM(runs, run));
        if (blocks == -1.0 && PyErr_Occurred() != NULL) return NULL;
        EACH(i, count) {
            npy_intp place = slots[i] >> 3;
            if (place < width && (held[run * width + place] >> (slots[i] & 7) & 1)) out[i] += blocks;
        }
    }
    EACH(i, count) out[i] = min2(out[i] * block_tokens, tokens_most);
    Py_RETURN_NONE;
}

static PyObject *loads(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("loads", given, how_many, 4);
    npy_intp end, count;
    Facts f = the_columns(&all, &end);
    const npy_intp *slots = the_slots(&all, end, &count);
    Array unreported = read_from(&all, NPY_DOUBLE, 2), out = written_to(&all, NPY_DOUBLE, 2);
    demand_unreported(&all, unreported, count);
    demand(&all, out.shape[0] == LOAD && out.shape[1] == count, "out: a row for each load, a column a slot");
    if (all.failed) return NULL;
    gather(&f, slots, count, unreported.data, unreported.shape[0], out.data);
    Py_RETURN_NONE;
}

static PyObject *prefill_rates(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("prefill_rates", given, how_many, 6);
    npy_intp end, count;
    Facts f = the_columns(&all, &end);
    const npy_intp *slots = the_slots(&all, end, &count);
    Work work = {.now_s = a_float(&all)};
    work.tau_s = a_float(&all), work.peer_tokens_per_s = a_float(&all);
    Array out = written_to(&all, NPY_DOUBLE, 1);
    demand(&all, out.shape[0] == count, "out: a place for each slot");
    if (all.failed) return NULL;
    double *rates = out.data;
    EACH(i, count) rates[i] = tokens_per_s(&f, slots[i], &work);
    Py_RETURN_NONE;
}

static PyObject *tails(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("tails", given, how_many, 7);
    npy_intp end = NPY_MAX_INTP, count;
    Array rows = read_from(&all, NPY_DOUBLE, 2), spread = the_spread(&all, &end);
    const npy_intp *slots = the_slots(&all, end, &count);
    npy_intp row = an_index(&all, KEPT_QUANTILES);
    double share = a_float(&all), e2e_width = a_float(&all);
    Array out = written_to(&all, NPY_DOUBLE, 2);
    demand(&all, rows.shape[0] > BAND && rows.shape[1] == count, "rows: the first of a forecast, a column a slot");
    demand(&all, out.shape[0] == METRICS && out.shape[1] == count, "out: one row for each metric, a column a slot");
    demand(&all, share == 0.0 || row + 1 < KEPT_QUANTILES, "row: there is no next tracked quantile");
    demand_bands(&all, (double *)rows.data + BAND * count, count);
    if (all.failed) return NULL;
    fill_tails(rows.data, count, spread.data, spread.shape[3], slots, row, share, e2e_width, out.data);
    Py_RETURN_NONE;
}

static PyObject *in_time(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("in_time", given, how_many, 5);
    Array alive = read_from(&all, NPY_DOUBLE, 1);
    double per_octave = a_float(&all), cap = a_float(&all);
    Array lengths = read_from(&all, NPY_DOUBLE, 1), out = written_to(&all, NPY_DOUBLE, 2);
    npy_intp bins = alive.shape[0], count = lengths.shape[0];
    demand(&all, bins > 1, "alive: at least two bins");
    demand(&all, out.shape[0] == 2 && out.shape[1] == count, "out: two rows, a column for each length");
    if (all.failed) return NULL;
    const double *tokens = lengths.data;
    double *chance = out.data, *slope = chance + count;
    EACH(i, count) {
        chance[i] = slope[i] = 0.0;
        if ((cap > 0.0 && tokens[i] >= cap) || tokens[i] >= REPLY_MOST) {
            chance[i] = 1.0;
        } else if (tokens[i] >= 1.0) {
            chance[i] = 1.0 - alive_at(alive.data, bins, per_octave, tokens[i]);
            double later = 1.0 - alive_at(alive.data, bins, per_octave, tokens[i] * OCTAVE_STEP);
            slope[i] = (later - chance[i]) * per_octave / LOG_2;
        }
    }
    Py_RETURN_NONE;
}

static PyObject *at_rest(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("at_rest", given, how_many, 12);
    npy_intp end, count;
    Facts f = the_columns(&all, &end);
    the_physics(&all, &f, &end);
    Array load_bias = the_load_bias(&all, &end);
    const npy_intp *slots = the_slots(&all, end, &count);
    Work work = {.now_s = 0.0};
    work.prompt_tokens = work.mean_prompt_tokens = a_float(&all);
    double output_tokens = work.mean_output_tokens = a_float(&all);
    work.held_tokens = a_float(&all);
    double sequences = a_float(&all);
    Array forecast = read_from(&all, NPY_DOUBLE, 2), filled = written_to(&all, NPY_DOUBLE, 2);
    demand(&all, forecast.shape[0] == FORECAST && forecast.shape[1] == count,
           "rows: one for each of a forecast, a column a slot");
    demand(&all, filled.shape[0] == METRICS && filled.shape[1] == count, "out: one row for each metric, a column a slot");
    if (all.failed) return NULL;
    const double *cached = (double *)forecast.data + CACHED * count;
    double *out = filled.data, after = max2(output_tokens - 1.0, 0.0), idle[FORECAST] = {0.0};
    EACH(i, count) {
        npy_intp slot = slots[i];
        const double *bias = (double *)load_bias.data + slot;
        idle[CACHED] = cached[i];
        Engine e = engine(&f, idle, 1, slot, 0, work.prompt_tokens, sequences);
        Ahead a = ahead_of(&f, &e, &work);
        double ttft_s = first_token_s(&f, &e, &a) * bias[TTFT * BANDS * load_bias.shape[2]];
        double tpot_s = step_of_life_s(&f, &e, work.held_tokens) * bias[TPOT * BANDS * load_bias.shape[2]];
        out[TTFT * count + i] = ttft_s;
        out[TPOT * count + i] = tpot_s;
        out[E2E * count + i] = ttft_s + after * tpot_s;
    }
    Py_RETURN_NONE;
}

static PyObject *expected(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("expected", given, how_many, 13);
    npy_intp end;
    Facts f = the_columns(&all, &end);
    the_physics(&all, &f, &end);
    Array spread = the_spread(&all, &end);
    npy_intp slot = an_index(&all, end), i = an_index(&all, NPY_MAX_INTP);
    Work work = {.now_s = a_float(&all)};
    work.prompt_tokens = work.mean_prompt_tokens = a_float(&all);
    work.mean_output_tokens = a_float(&all), work.held_tokens = a_float(&all);
    Array forecast = read_from(&all, NPY_DOUBLE, 2), filled = written_to(&all, NPY_DOUBLE, 1);
    npy_intp count = forecast.shape[1];
    demand(&all, forecast.shape[0] == FORECAST && i < count, "rows: one for each of a forecast, a column a slot");
    demand(&all, filled.shape[0] == EXPECTATION, "out: the terms and the spreads");
    const double *rows = forecast.data;
    if (!all.failed) demand_bands(&all, rows + BAND * count + i, 1);
    if (all.failed) return NULL;
    Engine e = engine(&f, rows, count, slot, i, work.prompt_tokens, 1.0);
    Ahead a = ahead_of(&f, &e, &work);
    double *out = filled.data;
    out[FIXED] = a.steps * e.fixed_s;
    out[SEQ] = a.steps * (e.seq_s * e.batch);
    out[CONTEXT] = a.steps * (e.context_s * e.context);
    out[TOKEN] = a.prompt_s;
    out[PAIR] = a.pair_s;
    out[FIRST] = e.first_s;
    out[AHEAD] = e.scheduled_s;
    EACH(term, TERMS) out[term] /= e.factor[term];
    const double *spreads = (double *)spread.data + (npy_intp)rows[BAND * count + i] * spread.shape[3] + slot;
    EACH(kept, METRICS * KEPT_QUANTILES) out[SPREADS + kept] = spreads[kept * BANDS * spread.shape[3]];
    double step_share = e.step_s / rows[TTFT * count + i], waited = a.waiting * step_share;
    return PyFloat_FromDouble(WAIT_VARIANCE * (waited * waited) + STEP_VARIANCE * (step_share * step_share));
}

static PyObject *lived(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("lived", given, how_many, 12);
    npy_intp end = NPY_MAX_INTP;
    const double *prior = rows_by_slot(&all, PRIOR, &end, "prior: one column for each term, and three more");
    const double *roof = rows_by_slot(&all, ROOF_POINTS, &end, "roofs: one column for each point");
    npy_intp slot = an_index(&all, end);
    double stages = a_float(&all), chunk_tokens = a_float(&all), steps = a_float(&all), lasted_s = a_float(&all);
    double decoding_s = a_float(&all), context_s = a_float(&all), prompts = a_float(&all), mean = a_float(&all);
    Array filled = written_to(&all, NPY_DOUBLE, 1);
    demand(&all, filled.shape[0] >= TERMS, "out: a place for each term");
    if (all.failed) return NULL;
    prior += slot * PRIOR, roof += slot * ROOF_POINTS;
    double batch = decoding_s / lasted_s, rows = batch / stages, *out = filled.data;
    double over_batch_s = roof_s(roof, prior, rows);
    out[FIXED] = (prior[FIXED] + over_batch_s) * steps;
    out[SEQ] = prior[SEQ] * (steps * batch);
    out[CONTEXT] = prior[CONTEXT] * (steps * (context_s / lasted_s));
    out[TOKEN] = prior[TOKEN] * prompts;
    out[PAIR] = prior[PAIR] * prompts * mean / 2.0;
    out[FIRST] = out[AHEAD] = 0.0;
    if (prompts != 0.0) {
        double piece = min2(mean, chunk_tokens), eager_s = prior[EAGER];
        double over_s = roof_s(roof, prior, rows + piece) - over_batch_s;
        out[TOKEN] += prompts / piece * sqrt(over_s * over_s + eager_s * eager_s);
    }
    Py_RETURN_NONE;
}

static PyMethodDef loops[] = {
    A_LOOP(predicted), A_LOOP(resident), A_LOOP(loads), A_LOOP(prefill_rates), A_LOOP(tails), A_LOOP(in_time),
    A_LOOP(at_rest), A_LOOP(expected), A_LOOP(lived), {NULL},
};

A_MODULE(_kernels, loops)
