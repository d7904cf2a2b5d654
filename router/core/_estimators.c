/* The loops of estimators.py in C, equal to them bit for bit: the docstrings there say what each does and why.
 *
 * What is changed here has to be changed there.
 */
#include "_loops.h"

static const double quantiles[KEPT_QUANTILES] = QUANTILES;

/* -- factors -------------------------------------------------------------------------------------------------------- */

/* Of one slot. */
typedef struct {
    double *factor, *log_factor, *covariance, *noise, *watch;
    const double *wander, *variance;
} Filter;

static void widen_slot(double *covariance, const double *variance, double *watch) {
    watch[CUSUM_ABOVE] = watch[CUSUM_BELOW] = 0.0;
    EACH(j, TERMS) {
        EACH(k, TERMS) covariance[j * TERMS + k] += CHANGE_ALL * CHANGE_ALL;
        covariance[j * TERMS + j] += CHANGE_EACH * CHANGE_EACH * variance[j];
    }
}

static void bound(double *covariance, const double *variance) {
    double shrink[TERMS];
    EACH(j, TERMS) {
        double largest = variance[j] + CHANGE_ALL * CHANGE_ALL;
        shrink[j] = min2(1.0, sqrt(largest / max2(covariance[j * TERMS + j], VARIANCE_MIN)));
    }
    EACH(j, TERMS) EACH(k, TERMS) covariance[j * TERMS + k] *= shrink[j] * shrink[k];
}

static void watch_for_changes(const Filter *f, double z) {
    double *watch = f->watch;
    watch[CUSUM_ABOVE] = max2(0.0, watch[CUSUM_ABOVE] + z - SLACK);
    watch[CUSUM_BELOW] = max2(0.0, watch[CUSUM_BELOW] - z - SLACK);
    watch[SEEN] += 1.0;
    if (watch[CUSUM_ABOVE] > ALARM || watch[CUSUM_BELOW] > ALARM) {
        watch[CHANGES] += 1.0;
        widen_slot(f->covariance, f->variance, watch);
    } else if (fmod(watch[SEEN], WANDER_EVERY) == 0.0) {
        EACH(at, TERMS * TERMS) f->covariance[at] += f->wander[at];
        if (fmod(watch[SEEN], BOUND_EVERY) == 0.0) bound(f->covariance, f->variance);
    }
}

static double learn_slot(const Filter *f, double *noise, const double *terms_s, double constant_s, double actual_s,
                         double log_variance) {
    double predicted_s = constant_s, shares[TERMS], spread[TERMS] = {0.0}, believed = 0.0;
    EACH(j, TERMS) predicted_s += terms_s[j] * f->factor[j];
    EACH(j, TERMS) {
        shares[j] = terms_s[j] * f->factor[j] / predicted_s;
        EACH(k, TERMS) spread[k] += f->covariance[k * TERMS + j] * shares[j];
    }
    EACH(j, TERMS) believed += shares[j] * spread[j];
    double total = believed + *noise + log_variance;
    double deviation = sqrt(total), error = log(actual_s / predicted_s);
    double z = min2(CLIP, max2(-CLIP, error / deviation)), gain = z * deviation / total, pull[TERMS];
    EACH(k, TERMS) pull[k] = spread[k] / total;
    EACH(j, TERMS) {
        f->log_factor[j] = min2(LOG_FACTOR_MOST, max2(-LOG_FACTOR_MOST, f->log_factor[j] + gain * spread[j]));
        f->factor[j] = exp(f->log_factor[j]);
        EACH(k, TERMS) f->covariance[j * TERMS + k] -= spread[j] * pull[k];
    }
    double moved = z * deviation, excess = moved * moved - believed - log_variance - *noise;
    *noise = min2(NOISE_MAX, max2(NOISE_MIN, *noise + NOISE_GAIN * excess));
    watch_for_changes(f, z);
    return error - z * deviation * believed / total;
}

/* -- scores --------------------------------------------------------------------------------------------------------- */

/* By time, and their places by size. */
typedef struct {
    double *scores;
    npy_uint8 *order;
} Ranked;

static inline npy_intp seen_of(Ranked of) { return (npy_intp)of.scores[SEEN_SCORES]; }

static npy_intp rank_of(Ranked of, npy_intp count, double score) {
    npy_intp low = 0, high = count;
    while (low < high) {
        npy_intp middle = (low + high) / 2;
        if (of.scores[of.order[middle]] < score) low = middle + 1;
        else high = middle;
    }
    return low;
}

static void add(Ranked of, double score) {
    npy_intp seen = seen_of(of), count = least_of(seen, WINDOW), place = seen % WINDOW, gap = count;
    npy_intp rank = rank_of(of, count, score);
    npy_uint8 *order = of.order;
    if (seen >= WINDOW) {
        gap = least_of(rank_of(of, count, of.scores[place]), WINDOW - 1);
        while (gap < WINDOW - 1 && order[gap] != place) gap++;
    }
    for (; gap > rank; gap--) order[gap] = order[gap - 1];
    for (; gap < rank - 1; gap++) order[gap] = order[gap + 1];
    order[gap] = (npy_uint8)place;
    of.scores[place] = score;
    of.scores[SEEN_SCORES] += 1.0;
}

static double spread_of(Ranked of, npy_intp q, double below) {
    npy_intp count = least_of(seen_of(of), WINDOW);
    const double *scores = of.scores;
    double rank = ceil((double)(count + 1) * scores[LEVELS + q]), largest = scores[of.order[count - 1]], score;
    if (rank <= (double)count) score = scores[of.order[(npy_intp)max2(rank, 1.0) - 1]];
    else score = largest + BEYOND * (largest - scores[of.order[count / 2]]);
    return max2(score, below);
}

static void adapt(double *scores, double score, const double *spreads) {
    EACH(i, KEPT_QUANTILES) {
        double quantile = quantiles[i], *level = scores + LEVELS + i;
        double least = quantile >= ONLY_WIDER ? quantile : max2(0.3, 1.5 * quantile - 0.5);
        if (score <= spreads[i]) *level = max2(least, *level - ACI_GAIN * (1.0 - quantile));
        else *level = min2(LEVEL_MAX, *level + ACI_GAIN * quantile);
    }
}

/* -- trust ---------------------------------------------------------------------------------------------------------- */

static npy_int8 trust(const double *stats, npy_int8 before) {
    if (stats[STATS_SEEN + TTFT] < TRUSTED_AFTER) return before;
    double strict = before == OFF ? RECOVERED : 1.0;
    int wrong = stats[STATS_ERROR + TTFT] > strict * TTFT_ERROR_OFF || stats[STATS_ERROR + TPOT] > strict * TPOT_ERROR_OFF ||
                stats[STATS_COVERAGE] < COVERAGE_OFF / strict;
    return wrong ? OFF : TRUSTED;
}

static void note(double *stats, npy_int8 *state, npy_intp metric, double score, const double *spreads, double width,
                 int sure) {
    stats[STATS_SEEN + metric] += 1.0;
    EACH(i, KEPT_QUANTILES) if (score <= spreads[i]) stats[STATS_MET + KEPT_QUANTILES * metric + i] += 1.0;
    double size = fabs(score) * width, error = stats[STATS_ERROR + metric];
    if (sure) stats[STATS_ERROR + metric] = size > error ? error * ERROR_UP : error / ERROR_UP;
    if (metric == TTFT) {
        double met = score <= spreads[_P90] ? 1.0 : 0.0;
        stats[STATS_COVERAGE] += COVERAGE_GAIN * (met - stats[STATS_COVERAGE]);
        *state = trust(stats, *state);
    }
}

/* -- arguments ------------------------------------------------------------------------------------------------------ */

/* `width` numbers a slot, in one axis of that length or in two of TERMS. */
static double *by_slot(Arguments *all, int axes, int flags, npy_intp width, npy_intp *end, const char *what) {
    Array found = an_array(all, NPY_DOUBLE, axes, flags);
    npy_intp held = axes == 2 ? found.shape[1] : found.shape[1] == TERMS ? found.shape[1] * found.shape[2] : 0;
    demand(all, held == width, what);
    *end = least_of(*end, found.shape[0]);
    return found.data;
}

static Ranked the_scores(Arguments *all, int flags) {
    Array scores = an_array(all, NPY_DOUBLE, 1, flags), order = an_array(all, NPY_UINT8, 1, flags);
    Ranked found = {scores.data, order.data};
    demand(all, scores.shape[0] == SCORES, "scores: by time, the levels and how many were seen");
    demand(all, order.shape[0] == WINDOW, "order: the place of each score");
    if (all->failed) return found;
    demand(all, found.scores[SEEN_SCORES] >= 0.0 && found.scores[SEEN_SCORES] < 1e15, "scores: fewer than none were seen");
    int beyond = 0;
    EACH(rank, WINDOW) beyond |= found.order[rank] >= WINDOW;
    demand(all, !beyond, "order: a place is beyond the scores");
    return found;
}

/* -- loops ---------------------------------------------------------------------------------------------------------- */

static PyObject *widen(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("widen", given, how_many, 4);
    npy_intp end = NPY_MAX_INTP;
    double *covariance = by_slot(&all, 3, NPY_ARRAY_CARRAY, TERMS * TERMS, &end, "covariance: terms by terms");
    const double *variance = by_slot(&all, 2, NPY_ARRAY_CARRAY_RO, TERMS, &end, "variance: one for each term");
    double *watch = by_slot(&all, 2, NPY_ARRAY_CARRAY, WATCH, &end, "watch: its columns");
    npy_intp slot = an_index(&all, end);
    if (all.failed) return NULL;
    widen_slot(covariance + slot * TERMS * TERMS, variance + slot * TERMS, watch + slot * WATCH);
    Py_RETURN_NONE;
}

static PyObject *learn(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("learn", given, how_many, 13);
    npy_intp end = NPY_MAX_INTP;
    Filter f;
    f.factor = by_slot(&all, 2, NPY_ARRAY_CARRAY, TERMS, &end, "factor: one for each term");
    f.log_factor = by_slot(&all, 2, NPY_ARRAY_CARRAY, TERMS, &end, "log_factor: one for each term");
    f.covariance = by_slot(&all, 3, NPY_ARRAY_CARRAY, TERMS * TERMS, &end, "covariance: terms by terms");
    f.wander = by_slot(&all, 3, NPY_ARRAY_CARRAY_RO, TERMS * TERMS, &end, "wander: terms by terms");
    f.variance = by_slot(&all, 2, NPY_ARRAY_CARRAY_RO, TERMS, &end, "variance: one for each term");
    Array noise = written_to(&all, NPY_DOUBLE, 2);
    npy_intp kinds = noise.shape[1];
    end = least_of(end, noise.shape[0]);
    f.watch = by_slot(&all, 2, NPY_ARRAY_CARRAY, WATCH, &end, "watch: its columns");
    npy_intp slot = an_index(&all, end), kind = an_index(&all, kinds);
    Array terms = read_from(&all, NPY_DOUBLE, 1);
    double constant_s = a_float(&all), actual_s = a_float(&all), log_variance = a_float(&all);
    demand(&all, terms.shape[0] >= TERMS, "terms_s: one for each term");
    if (all.failed) return NULL;
    f.factor += slot * TERMS, f.log_factor += slot * TERMS, f.variance += slot * TERMS, f.watch += slot * WATCH;
    f.covariance += slot * TERMS * TERMS, f.wander += slot * TERMS * TERMS;
    f.noise = (double *)noise.data + slot * kinds + kind;
    return PyFloat_FromDouble(learn_slot(&f, f.noise, terms.data, constant_s, actual_s, log_variance));
}

static PyObject *spreads(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("spreads", given, how_many, 3);
    Ranked of = the_scores(&all, NPY_ARRAY_CARRAY_RO);
    Array out = written_to(&all, NPY_DOUBLE, 1);
    demand(&all, out.shape[0] == KEPT_QUANTILES, "out: one for each tracked quantile");
    if (!all.failed) demand(&all, of.scores[SEEN_SCORES] >= 1.0, "scores: none was seen");
    if (all.failed) return NULL;
    double least = -Py_HUGE_VAL, *filled = out.data;
    EACH(q, KEPT_QUANTILES) filled[q] = least = spread_of(of, q, least);
    Py_RETURN_NONE;
}

static PyObject *judge(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("judge", given, how_many, 15);
    npy_intp end = NPY_MAX_INTP;
    Ranked own = the_scores(&all, NPY_ARRAY_CARRAY), pooled = the_scores(&all, NPY_ARRAY_CARRAY);
    Array spread = written_to(&all, NPY_DOUBLE, 4), borrows = written_to(&all, NPY_BOOL, 3);
    demand(&all, spread.shape[0] == METRICS && spread.shape[1] == KEPT_QUANTILES && spread.shape[2] == BANDS,
           "spread: by metric, tracked quantile, band and slot");
    demand(&all, borrows.shape[0] == METRICS && borrows.shape[1] == BANDS, "borrows: by metric, band and slot");
    end = least_of(spread.shape[3], borrows.shape[2]);
    double *stats = by_slot(&all, 2, NPY_ARRAY_CARRAY, STATS, &end, "stats: their columns");
    Array state = written_to(&all, NPY_INT8, 1);
    npy_intp metric = an_index(&all, METRICS), band = an_index(&all, BANDS);
    npy_intp slot = an_index(&all, least_of(end, state.shape[0]));
    double score = a_float(&all), width = a_float(&all);
    Array expectation = read_from(&all, NPY_DOUBLE, 1);
    demand(&all, expectation.shape[0] == EXPECTATION, "expectation: the terms and the spreads");
    int sure = all.failed ? 0 : PyObject_IsTrue(given[all.at++]);
    if (all.failed || sure < 0) return NULL;

    const double *expected = (double *)expectation.data + SPREADS + KEPT_QUANTILES * metric;
    score = min2(SCORE_MOST, max2(-SCORE_MOST, score));
    note(stats + slot * STATS, (npy_int8 *)state.data + slot, metric, score, expected, width, sure);
    add(own, score);
    adapt(own.scores, score, expected);
    npy_intp seen = seen_of(own);
    if (seen >= FEW && (seen < SETTLED || seen % REFRESH == 0)) {
        npy_intp slots = spread.shape[3];
        double least = -Py_HUGE_VAL, *first = (double *)spread.data + (metric * KEPT_QUANTILES * BANDS + band) * slots + slot;
        EACH(q, KEPT_QUANTILES) first[q * BANDS * slots] = least = spread_of(own, q, least);
        ((npy_bool *)borrows.data)[(metric * BANDS + band) * borrows.shape[2] + slot] = NPY_FALSE;
    }
    if (seen >= FEW && seen % FEW != 0) Py_RETURN_FALSE;
    add(pooled, score);
    return PyBool_FromLong(seen_of(pooled) >= FEW && seen_of(pooled) % REFRESH == 0);
}

static PyMethodDef loops[] = {A_LOOP(widen), A_LOOP(learn), A_LOOP(spreads), A_LOOP(judge), {NULL}};

A_MODULE(_estimators, loops)
