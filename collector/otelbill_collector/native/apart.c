/* Traces in which nothing is weighed but who pays, decided by columns: see decode/column_claims.py for the definition. */
#include "ob.h"

enum { CALL = 0, AGGREGATE = 1 };                       /* other roles are neither */
enum { WEIGHED = 1, INTERNAL = 2, LETS_THROUGH = 4 };   /* of a template, see column_claims */

typedef struct { i32 *parent, *order, *through, *table; u8 *state; u32 mask; } Work;

static u32 slot_of(const u8 *span_id, u32 mask) { return (u32)ob_mix(ob_load64(span_id), 0x9E3779B97F4A7C15ull) & mask; }

/* The place of a span in its group, or -1. `table` holds places + 1. */
static i32 find_place(const Work *work, const u8 *span_ids, const i32 *rows, const u8 *wanted) {
    for (u32 at = slot_of(wanted, work->mask);; at = (at + 1) & work->mask) {
        i32 place = work->table[at] - 1;
        if (place < 0 || !memcmp(span_ids + 8 * (i64)rows[place], wanted, 8)) return place;
    }
}

/* Enters every span under its id; 0 where one id stands twice. */
static int enter_spans(Work *work, const u8 *span_ids, const i32 *rows, i32 count) {
    u32 size = 4;
    while (size < 2u * (u32)count) size <<= 1;
    work->mask = size - 1;
    memset(work->table, 0, size * sizeof(i32));
    for (i32 i = 0; i < count; i++) {
        const u8 *own = span_ids + 8 * (i64)rows[i];
        u32 at = slot_of(own, work->mask);
        for (; work->table[at]; at = (at + 1) & work->mask)
            if (!memcmp(span_ids + 8 * (i64)rows[work->table[at] - 1], own, 8)) return 0;
        work->table[at] = i + 1;
    }
    return 1;
}

/* Every place, parents before their children; 0 where a span is its own ancestor. */
static int sort_down(Work *work, i32 count) {
    memset(work->state, 0, (size_t)count);
    i32 placed = 0;
    for (i32 start = 0; start < count; start++) {
        i32 at = start, length = 0;
        for (; at >= 0 && !work->state[at]; at = work->parent[at]) {
            work->state[at] = 1;
            work->through[length++] = at; /* the path upwards; `through` is not in use yet */
        }
        if (at >= 0 && work->state[at] == 1) return 0;
        while (length) {
            at = work->through[--length];
            work->state[at] = 2;
            work->order[placed++] = at;
        }
    }
    return 1;
}

/* 1 where a call stands directly inside another (only calls, and descriptions of one, between). */
static int has_nested_calls(const Work *work, const i32 *rows, i32 count, const i32 *templates, const u8 *role, const u8 *flags) {
    for (i32 k = 0; k < count; k++) {
        i32 i = work->order[k], above = work->parent[i], template = templates[rows[i]];
        i32 found = above >= 0 ? work->through[above] : -1;
        if (role[template] == CALL) {
            if (found >= 0) return 1;
            work->through[i] = i;
        } else {
            work->through[i] = flags[template] & LETS_THROUGH ? found : -1;
        }
    }
    return 0;
}

/* Gives spans without a value that of their nearest ancestor that has one. */
static void inherit(const Work *work, const i32 *rows, i32 count, i32 *column) {
    i32 known = 0;
    for (i32 i = 0; i < count; i++) known += column[rows[i]] >= 0;
    if (!known || known == count) return;
    for (i32 k = 0; k < count; k++) {
        i32 i = work->order[k], above = work->parent[i];
        if (above >= 0 && column[rows[i]] < 0) column[rows[i]] = column[rows[above]];
    }
}

/* The only value that the spans of a group name themselves, or -1. */
static i32 find_owner(const i32 *rows, i32 count, const i32 *column) {
    i32 owner = -1;
    for (i32 i = 0; i < count; i++) {
        i32 value = column[rows[i]];
        if (value < 0) continue;
        if (owner >= 0 && owner != value) return -1;
        owner = value;
    }
    return owner;
}

static void give(const i32 *rows, i32 count, i32 *column, i32 owner) {
    if (owner < 0) return;
    for (i32 i = 0; i < count; i++) if (column[rows[i]] < 0) column[rows[i]] = owner;
}

/* Decides each group of rows `rows[starts[g]:starts[g + 1]]`, all of one trace and all settled. apart[g] is 1 where it could, and then
 * the four columns (indexed by row; codes, -1 is absent) hold what is decided; of other groups they are left as given.
 * role, flags and emitter are those of the templates. Returns 0, or -1 without memory. */
OB_API int ob_decide_apart(i64 groups, const i64 *starts, const i32 *rows, const i32 *templates, const u8 *role,
                           const u8 *flags, const i32 *emitter, const u8 *span_ids, const u8 *parent_ids,
                           const u8 *has_parent, const u8 *settled, i32 *customer, i32 *project, i32 *step, i32 *run, u8 *apart) {
    i64 largest = 1;
    for (i64 g = 0; g < groups; g++) if (starts[g + 1] - starts[g] > largest) largest = starts[g + 1] - starts[g];
    size_t n = (size_t)largest, slots = 4;
    while (slots < 2 * n) slots <<= 1;
    Work work = {malloc(n * 4), malloc(n * 4), malloc(n * 4), malloc(slots * 4), malloc(n), 0};
    int failed = !work.parent || !work.order || !work.through || !work.table || !work.state;
    for (i64 g = 0; g < groups && !failed; g++) {
        const i32 *group = rows + starts[g];
        i32 count = (i32)(starts[g + 1] - starts[g]), calls = 0, of = -1, flat = 1;
        apart[g] = 0;
        int weighed = 0;
        for (i32 i = 0; i < count && !weighed; i++) {
            i32 template = templates[group[i]];
            weighed = (flags[template] & WEIGHED) || !settled[group[i]];
            if (role[template] == CALL) {
                weighed |= (flags[template] & INTERNAL) || (calls && emitter[template] != of);
                of = emitter[template];
                calls++;
            }
        }
        if (weighed || !enter_spans(&work, span_ids, group, count)) continue;
        for (i32 i = 0; i < count; i++) {
            i64 row = group[i];
            work.parent[i] = has_parent[row] ? find_place(&work, span_ids, group, parent_ids + 8 * row) : -1;
            flat &= work.parent[i] < 0;
        }
        if (!sort_down(&work, count)) continue;
        if (calls > 1 && !flat && has_nested_calls(&work, group, count, templates, role, flags)) continue;
        i32 owner = find_owner(group, count, customer), of_project = find_owner(group, count, project);
        inherit(&work, group, count, customer);
        inherit(&work, group, count, project);
        inherit(&work, group, count, step);
        inherit(&work, group, count, run);
        give(group, count, customer, owner);
        give(group, count, project, of_project);
        apart[g] = 1;
    }
    free(work.parent); free(work.order); free(work.through); free(work.table); free(work.state);
    return failed ? -1 : 0;
}
