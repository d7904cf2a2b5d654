/* The loops of _headroom.py in C, equal to them bit for bit: the docstrings there say what each does and why.
 *
 * What is changed here has to be changed there.
 */
#include "_loops.h"

/* A request's bounds, and what its candidates are: `count` of them, each a column of `rows` and of `weights`. */
typedef struct {
    double ttft_s, tpot_s, e2e_s;
    npy_intp count, columns_end;
    const double *rows, *columns;
    const npy_intp *slots;
    double *weights;
} Weighed;

static inline double row(const Weighed *w, int which, npy_intp i) { return w->rows[which * w->count + i]; }
static inline double weight(const Weighed *w, int which, npy_intp i) { return w->weights[which * w->count + i]; }
static inline void weigh_as(const Weighed *w, int which, npy_intp i, double number) {
    w->weights[which * w->count + i] = number;
}

static inline double usable_tpot_s(double mean_s, double tail_s, npy_int8 state) {
    return min2(tail_s, (state == OFF ? TPOT_TAIL_MAX_OFF : TPOT_TAIL_MAX) * mean_s);
}

static inline double usable_ttft_s(double mean_s, double tail_s, double busy) {
    double margin = max2(tail_s / mean_s - 1.0, TTFT_MARGIN_MIN) * (1.0 + PREFILL_MARGIN * busy);
    return min2(1.0 + margin, TTFT_TAIL_MAX) * mean_s;
}

static inline double bound_s(const Weighed *w, npy_intp i) {
    const double *column = w->columns + w->slots[i];
    npy_intp end = w->columns_end;
    double bound = column[TPOT_BOUND_S * end];
    return w->e2e_s < Py_HUGE_VAL ? bound : min2(bound, column[E2E_TPOT_BOUND_S * end]);
}

static inline double slo_use(const Weighed *w, double ttft_s, double tpot_s, double e2e_s) {
    return max3(ttft_s / w->ttft_s, tpot_s / w->tpot_s, e2e_s / w->e2e_s);
}

static inline double in_flight(const Weighed *w, npy_intp i) {
    return row(w, LOADS + PREFILLING, i) + row(w, LOADS + DECODING, i);
}

static double bearable(const Weighed *w, double urgent_s) {
    double least = Py_HUGE_VAL, soonest_s = Py_HUGE_VAL;
    EACH(i, w->count) {
        if (weight(w, FITS, i) > 0.0) {
            least = min2(least, row(w, EXPECTED_TPOT_VIOLATIONS, i));
            soonest_s = min2(soonest_s, row(w, TTFT, i));
        }
    }
    if (least > TPOT_VIOLATIONS_MAX && soonest_s < urgent_s) return -1.0;
    return max2(least, TPOT_VIOLATIONS_MAX);
}

static inline double score(const Weighed *w, const double *price_per_s, int anything, npy_intp i) {
    double use = weight(w, SLO_USE_TAIL, i), e2e_s = row(w, E2E, i);
    if (price_per_s != NULL) return price_per_s[i] * e2e_s * use / (in_flight(w, i) + 1.0);
    double cost_s = e2e_s + OVERLAP * row(w, IMPOSED_DELAY_S, i);
    return anything ? use * cost_s / max2(1.0 + EDGE - use, EDGE) : cost_s;
}

static npy_intp nearest(const Weighed *w, double most, const double *price_per_s) {
    double lowest = Py_HUGE_VAL, *scores = w->weights + CANDIDATES * w->count;
    int anything = 0;
    EACH(i, w->count) anything |= weight(w, SLO_USE_TAIL, i) > 0.0;
    EACH(i, w->count) {
        scores[i] = Py_HUGE_VAL;
        if (weight(w, FITS, i) > 0.0 && row(w, EXPECTED_TPOT_VIOLATIONS, i) <= most) {
            scores[i] = score(w, price_per_s, anything, i);
            lowest = min2(lowest, scores[i]);
        }
    }
    double near = lowest * (1.0 + NEAR_SHARE);
    npy_intp found = 0;
    EACH(i, w->count) {
        int remains = weight(w, FITS, i) > 0.0 && row(w, EXPECTED_TPOT_VIOLATIONS, i) <= most;
        if (remains && scores[i] <= near) scores[found++] = (double)i;
    }
    return found;
}

/* -- arguments ------------------------------------------------------------------------------------------------------ */

static const double *the_rows(Arguments *all, npy_intp rows, npy_intp *count, const char *what) {
    Array found = read_from(all, NPY_DOUBLE, 2);
    demand(all, found.shape[0] == rows && (*count < 0 || found.shape[1] == *count), what);
    *count = found.shape[1];
    return found.data;
}

static void the_candidates(Arguments *all, Weighed *w) {
    Array columns = read_from(all, NPY_DOUBLE, 2), slots = read_from(all, NPY_INTP, 1);
    demand(all, columns.shape[0] >= LEDGER, "columns: one row for each fact of the ledger");
    demand(all, slots.shape[0] == w->count, "slots: one for each candidate");
    demand_slots(all, slots.data, slots.shape[0], columns.shape[1]);
    w->columns = columns.data, w->columns_end = columns.shape[1], w->slots = slots.data;
}

static void the_weights(Arguments *all, Weighed *w, int flags) {
    Array weights = an_array(all, NPY_DOUBLE, 2, flags);
    demand(all, weights.shape[0] == WEIGHED && weights.shape[1] == w->count, "weights: their rows, a column a candidate");
    w->weights = weights.data;
}

static const npy_int8 *the_states(Arguments *all, npy_intp count) {
    Array states = read_from(all, NPY_INT8, 1);
    demand(all, states.shape[0] == count, "states: one for each candidate");
    return states.data;
}

/* -- loops ---------------------------------------------------------------------------------------------------------- */

static PyObject *weigh(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("weigh", given, how_many, 13);
    Weighed w = {.count = -1};
    w.ttft_s = max2(a_float(&all), BOUND_MIN_S), w.tpot_s = max2(a_float(&all), BOUND_MIN_S);
    w.e2e_s = max2(a_float(&all), BOUND_MIN_S);
    double after = max2(a_float(&all) - 1.0, 0.0), waited_s = a_float(&all), safety = a_float(&all);
    double urgent_s = a_float(&all);
    w.rows = the_rows(&all, FORECAST, &w.count, "rows: those of a forecast");
    const npy_int8 *states = the_states(&all, w.count);
    the_candidates(&all, &w);
    Array prices = read_from(&all, NPY_DOUBLE, 1);
    demand(&all, prices.shape[0] == 0 || prices.shape[0] == w.count, "price_per_s: one for each candidate, or none");
    the_weights(&all, &w, NPY_ARRAY_CARRAY);
    if (all.failed) return NULL;
    npy_intp fit = 0;
    EACH(i, w.count) {
        double first_s = row(&w, TTFT, i), mean_tpot_s = row(&w, TPOT, i), tail_s = row(&w, TAILS + TTFT, i);
        double tpot_s = usable_tpot_s(mean_tpot_s, row(&w, TAILS + TPOT, i), states[i]);
        double usable_s = usable_ttft_s(first_s, tail_s, row(&w, PREFILL_SHARE, i));
        double peers = tpot_s / max2(bound_s(&w, i), BOUND_MIN_S), end_s = waited_s + after * tpot_s;
        double mean = max2(slo_use(&w, waited_s + usable_s, tpot_s, end_s + usable_s), peers);
        double tail = max2(slo_use(&w, waited_s + tail_s, tpot_s, end_s + tail_s), peers);
        mean = safety * mean;
        int fits = mean <= 1.0;
        if (!fits && in_flight(&w, i) < 1.0) {
            end_s = waited_s + first_s + after * mean_tpot_s;
            fits = safety * slo_use(&w, waited_s + first_s, mean_tpot_s, end_s) <= 1.0;
        }
        weigh_as(&w, SLO_USE_MEAN, i, mean);
        weigh_as(&w, SLO_USE_TAIL, i, tail);
        weigh_as(&w, PEERS_SLO_USE, i, peers);
        weigh_as(&w, TTFT_S, i, usable_s);
        weigh_as(&w, TPOT_S, i, tpot_s);
        weigh_as(&w, FITS, i, fits);
        fit += fits;
    }
    if (fit == 0) return PyLong_FromLong(NONE_FITS);
    return PyLong_FromSsize_t(nearest(&w, bearable(&w, urgent_s), prices.shape[0] > 0 ? prices.data : NULL));
}

static PyObject *longest_reply(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("longest_reply", given, how_many, 4);
    double ttft_s = a_float(&all), tpot_s = a_float(&all), e2e_s = a_float(&all), longest = 0.0;
    npy_intp count = -1;
    const double *rest = the_rows(&all, METRICS, &count, "rest: one row for each metric");
    if (all.failed) return NULL;
    EACH(i, count) {
        double first_s = rest[TTFT * count + i], each_s = rest[TPOT * count + i];
        if (first_s <= ttft_s && each_s <= tpot_s && first_s <= e2e_s)
            longest = max2(longest, 1.0 + (e2e_s - first_s) / max2(each_s, BOUND_MIN_S));
    }
    return PyFloat_FromDouble(longest);
}

static double tpot_in_s(double tpot_s, double rest_s, double bound, double shrinks, double life_s) {
    if (tpot_s <= bound) return 0.0;
    double gain = (tpot_s - rest_s) / life_s - shrinks;
    return gain > 0.0 ? min2((tpot_s - bound) / gain, life_s) : Py_HUGE_VAL;
}

static PyObject *room_in_s(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("room_in_s", given, how_many, 14);
    Weighed w = {.count = -1};
    w.ttft_s = a_float(&all), w.tpot_s = a_float(&all), w.e2e_s = a_float(&all);
    double after = max2(a_float(&all) - 1.0, 0.0), mean_reply_tokens = a_float(&all), waited_s = a_float(&all);
    double safety = a_float(&all), hold_s = a_float(&all), ahead = a_float(&all);
    w.rows = the_rows(&all, FORECAST, &w.count, "rows: those of a forecast");
    const double *rest = the_rows(&all, METRICS, &w.count, "rest: one row for each metric");
    the_candidates(&all, &w);
    the_weights(&all, &w, NPY_ARRAY_CARRAY_RO);
    if (all.failed) return NULL;
    double ends_per_s = 0.0, soonest_s = Py_HUGE_VAL;
    EACH(i, w.count) ends_per_s += in_flight(&w, i) / (mean_reply_tokens * row(&w, TPOT, i));
    double queue_s = ends_per_s > 0.0 ? ahead / ends_per_s : 0.0;
    EACH(i, w.count) {
        double first_s = safety * weight(&w, TTFT_S, i), tpot_s = safety * weight(&w, TPOT_S, i);
        double rest_s = tpot_s * rest[TPOT * w.count + i] / row(&w, TPOT, i), left_s = w.e2e_s - waited_s - first_s;
        double own_s = min2(w.tpot_s, after > 0.0 ? left_s / after : Py_HUGE_VAL);
        double bound = min2(own_s, bound_s(&w, i)), latest_s = min2(w.ttft_s - waited_s - first_s, hold_s);
        if (w.e2e_s < Py_HUGE_VAL) latest_s = min2(latest_s, left_s - after * min2(tpot_s, bound));
        if (latest_s < 0.0 || rest_s > own_s) continue;
        double shrinks = bound < w.tpot_s && bound == own_s ? 1.0 / after : 0.0;
        double in_s = queue_s + tpot_in_s(tpot_s, rest_s, bound, shrinks, mean_reply_tokens * row(&w, TPOT, i));
        if (in_s <= latest_s) soonest_s = min2(soonest_s, in_s);
    }
    return PyFloat_FromDouble(soonest_s);
}

static inline double normal(double z) { return 0.5 * (1.0 + erf(z / SQRT_2)); }
static inline double density(double z) { return exp(-0.5 * z * z) / SQRT_2_PI; }
static inline double sigma_of(double mean_s, double tail_s) {
    return min2(max2(log(tail_s / mean_s) / Z_90, SIGMA_MIN), SIGMA_MAX);
}

static PyObject *most_gained(PyObject *module, PyObject *const *given, Py_ssize_t how_many) {
    Arguments all = arguments("most_gained", given, how_many, 14);
    Weighed w = {.count = -1};
    w.ttft_s = a_float(&all), w.tpot_s = a_float(&all), w.e2e_s = a_float(&all);
    double waited_s = a_float(&all), safety = a_float(&all);
    w.rows = the_rows(&all, FORECAST, &w.count, "rows: those of a forecast");
    npy_intp count = w.count;
    const double *tails = the_rows(&all, METRICS, &count, "tails: one row for each metric");
    const double *rest = the_rows(&all, METRICS, &count, "rest: one row for each metric");
    Array ends = read_from(&all, NPY_DOUBLE, 2);
    npy_intp bounded = ends.shape[1];
    demand(&all, ends.shape[0] == 2 && (bounded == count || bounded == 0), "in_time: two rows, of each candidate or none");
    const double *in_time = ends.data;
    const npy_int8 *states = the_states(&all, count);
    the_candidates(&all, &w);
    double sharing = a_float(&all);
    the_weights(&all, &w, NPY_ARRAY_CARRAY);
    if (all.failed) return NULL;
    npy_intp best = 0;
    EACH(i, count) {
        double first_s = row(&w, TTFT, i), tpot_s = row(&w, TPOT, i), bound = bound_s(&w, i);
        weigh_as(&w, GAIN, i, -Py_HUGE_VAL);
        if (safety * tpot_s > min2(bound, w.tpot_s)) continue;
        double chance = 1.0, slope = 0.0, others = 0.0, queue = 0.0;
        if (bounded) chance = in_time[i], slope = sharing * in_time[count + i];
        double sigma = sigma_of(tpot_s, usable_tpot_s(tpot_s, tails[TPOT * count + i], states[i]));
        if (w.tpot_s < Py_HUGE_VAL) {
            double at = log(w.tpot_s / (safety * tpot_s)) / sigma, met = normal(at);
            slope = slope * met + chance * density(at) / sigma;
            chance *= met;
        }
        if (bound < Py_HUGE_VAL) others = density(log(bound / (safety * tpot_s)) / sigma) / sigma;
        if (w.ttft_s < Py_HUGE_VAL) {
            double total_s = waited_s + safety * first_s, busy = row(&w, PREFILL_SHARE, i);
            sigma = sigma_of(first_s, tails[TTFT * count + i]);
            if (total_s > w.ttft_s) continue;
            double at = log((w.ttft_s - waited_s) / (safety * first_s)) / sigma;
            queue = busy / (1.0 - busy) * max2(first_s - rest[TTFT * count + i], 0.0);
            queue = queue / total_s * density(at) / sigma;
            chance *= normal(at);
        }
        double harm = row(&w, IMPOSED_DELAY_S, i) / row(&w, E2E, i) * max2(slope, others) + queue;
        harm += row(&w, EXPECTED_TPOT_VIOLATIONS, i);
        weigh_as(&w, GAIN, i, chance - harm);
        if (weight(&w, GAIN, i) > weight(&w, GAIN, best)) best = i;
    }
    return PyLong_FromSsize_t(best);
}

static PyMethodDef loops[] = {
    A_LOOP(weigh), A_LOOP(longest_reply), A_LOOP(room_in_s), A_LOOP(most_gained), {NULL},
};

A_MODULE(_headroom_loops, loops)
