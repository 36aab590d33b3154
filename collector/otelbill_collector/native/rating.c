/* Prices spans by plans: the sum of count x price, in 128 bits with every overflow seen. Plans are found by what decides
 * prices (template, payer, step, which counts are not zero) and by the event time and request size for which they hold.
 * What no plan covers is left to the caller, who may add one and call again, or rates the span by itself.
 * Wrapped by rating.py, where the arrays are described. */
#include "ob.h"

enum { COUNTS = 5, DONE = 0, NO_PLAN = 1, ALONE = 2, SUMMED = 0, SETTLED = 1 };
#define DAY_NANOS 86400000000000ll

typedef struct {
    i64 from, last;         /* event time, both included */
    i64 day_from, day_last; /* time of day, both included */
    i64 above, upto;        /* input tokens of the request: above < total <= upto */
    i64 cost[COUNTS + 1], charge[COUNTS + 1]; /* for one of each count, and for the call itself */
    i32 kind, rating, version, next;          /* next: another plan of the same key, -1 is none */
} Plan;

static int holds(const Plan *plan, i64 at, i128 total) {
    if (at < plan->from || at > plan->last || total <= plan->above || total > plan->upto) return 0;
    if (plan->day_from == 0 && plan->day_last == DAY_NANOS - 1) return 1;
    i64 of_day = at % DAY_NANOS;
    if (of_day < 0) of_day += DAY_NANOS;
    return of_day >= plan->day_from && of_day <= plan->day_last;
}

/* The sum of prices over counts; 0 where it does not fit 128 bits. */
static int sum_prices(const i64 *prices, const i64 *counts, i64 rows, int counted, i64 *out) {
    i128 sum = prices[COUNTS];
    for (int unit = 0; unit < COUNTS && counted; unit++)
        if (__builtin_add_overflow(sum, (i128)counts[unit * rows] * prices[unit], &sum)) return 0;
    out[0] = (i64)(u64)sum;
    out[1] = (i64)(sum >> 64);
    return 1;
}

OB_API u64 ob_rating_slot(u64 key, u64 mask) { return ob_mix(key ^ 0x9E3779B97F4A7C15ull, 0xE7037ED1A0B428DBull) & mask; }

/* Returns how many spans are not done. */
OB_API i64 ob_rate(i64 rows, const i32 *template, const i32 *customer, const i32 *step, const i64 *ended, const i64 *counts,
                   const u8 *counted, i64 templates, const i32 *payer_of, const i32 *step_of, i64 names,
                   const u64 *keys, const i32 *firsts, u64 mask, const Plan *plans,
                   i32 *rating, i32 *version, i64 *cost, i64 *charge, u8 *priced, u64 *key_out, u8 *outcome) {
    i64 open = 0;
    for (i64 row = 0; row < rows; row++) {
        outcome[row] = ALONE;
        open++;
        if (template[row] < 0 || template[row] >= templates || customer[row] >= names || step[row] >= names) continue;
        const i64 *own = counts + row;
        int use = counted[template[row]], negative = 0;
        u64 units = 0;
        i128 total = 0;
        for (int unit = 0; unit < COUNTS && use; unit++) {
            i64 count = own[unit * rows];
            negative |= count < 0;
            units |= (u64)(count != 0) << unit;
            if (unit < 3) total += count; /* the uncached input, and what was read from and written to caches */
        }
        i64 payer = customer[row] < 0 ? 0 : payer_of[customer[row]], known_step = step[row] < 0 ? 0 : step_of[step[row]];
        if (negative || payer < 0 || known_step < 0) continue;
        u64 key = (((u64)template[row] << 22 | (u64)payer) << 16 | (u64)known_step) << 5 | units;
        key_out[row] = key;
        u64 slot = ob_rating_slot(key, mask);
        while (firsts[slot] >= 0 && keys[slot] != key) slot = (slot + 1) & mask;
        i32 place = firsts[slot];
        while (place >= 0 && !holds(plans + place, ended[row], total)) place = plans[place].next;
        if (place < 0) {
            outcome[row] = NO_PLAN;
            continue;
        }
        const Plan *plan = plans + place;
        int summed = plan->kind == SUMMED;
        if (summed && (!sum_prices(plan->cost, own, rows, use, cost + 2 * row) ||
                       !sum_prices(plan->charge, own, rows, use, charge + 2 * row))) continue;
        if (!summed && plan->kind != SETTLED) continue;
        if (!summed) cost[2 * row] = cost[2 * row + 1] = charge[2 * row] = charge[2 * row + 1] = 0;
        priced[row] = (u8)summed;
        rating[row] = plan->rating;
        version[row] = plan->version;
        outcome[row] = DONE;
        open--;
    }
    return open;
}
