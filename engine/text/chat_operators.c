/* chat_operators.c - operators between operands, from tokens to a tree. The order of
 * precedence is Jinja's: ~ binds tighter than + and looser than *. */
#include "engine/text/chat_tree.h"

#include <stdlib.h>
#include <string.h>

/* Operands with any of these operators between them, from left to right. */
static struct expr *parse_left(struct parser *p, struct expr *(*operand)(struct parser *), const int *ops) {
    struct expr *e = operand(p);
    while (!p->failed) {
        int i = 0;
        while (ops[i] && !at_op(p, ops[i])) i++;
        if (!ops[i]) break;
        p->at++;
        e = new_expr(p, EXPR_ARITHMETIC, e, operand(p));
        e->op = ops[i];
    }
    return e;
}

static struct expr *parse_power(struct parser *p) {
    static const int ops[] = {OP_POWER, 0};
    return parse_left(p, parse_operand, ops);
}

static struct expr *parse_product(struct parser *p) {
    static const int ops[] = {'*', '/', OP_FLOOR, '%', 0};
    return parse_left(p, parse_power, ops);
}

static struct expr *parse_concat(struct parser *p) {
    struct expr *e = parse_product(p);
    if (p->failed || !at_op(p, '~')) return e;
    struct expr *all = new_expr(p, EXPR_CONCAT, NULL, NULL), **last = &all->items;
    add_item(all, &last, e);
    while (take_op(p, '~')) add_item(all, &last, parse_product(p));
    return all;
}

static struct expr *parse_sum(struct parser *p) {
    static const int ops[] = {'+', '-', 0};
    return parse_left(p, parse_concat, ops);
}

/* The comparison at the place, taken; 0 = none. */
static int take_comparison(struct parser *p) {
    static const int ops[] = {OP_EQ, OP_NE, OP_LE, OP_GE, '<', '>'};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (take_op(p, ops[i])) return ops[i];
    if (take_word(p, "in")) return 'i';
    if (!at_word(p, "not") || !is_word(p->at + 1, "in")) return 0;
    p->at += 2;
    return 'n';
}

static struct expr *parse_comparison(struct parser *p) {
    struct expr *e = parse_sum(p), *all = NULL, **last = NULL;
    for (int op; !p->failed && (op = take_comparison(p)) != 0;) {
        if (!all) {
            all = new_expr(p, EXPR_COMPARE, e, NULL);
            last = &all->items;
        }
        /* A node around the operand, to hold the operator. */
        struct expr *operand = new_expr(p, EXPR_PLUS, parse_sum(p), NULL);
        operand->op = op;
        add_item(all, &last, operand);
    }
    return all ? all : e;
}

static struct expr *parse_not(struct parser *p) {
    if (!at_word(p, "not")) return parse_comparison(p);
    if (!parse_enter(p)) return NULL;
    p->at++;
    struct expr *e = new_expr(p, EXPR_NOT, parse_not(p), NULL);
    p->depth--;
    return e;
}

static struct expr *parse_and(struct parser *p) {
    struct expr *e = parse_not(p);
    while (take_word(p, "and")) e = new_expr(p, EXPR_AND, e, parse_not(p));
    return e;
}

struct expr *parse_or(struct parser *p) {
    struct expr *e = parse_and(p);
    while (take_word(p, "or")) e = new_expr(p, EXPR_OR, e, parse_and(p));
    return e;
}

struct expr *parse_expression(struct parser *p) {
    if (!parse_enter(p)) return NULL;
    struct expr *e = parse_or(p);
    while (take_word(p, "if")) {
        struct expr *choice = new_expr(p, EXPR_IF, e, parse_or(p));
        if (take_word(p, "else")) choice->c = parse_expression(p);
        grow_height(choice, choice->c);
        e = choice;
    }
    p->depth--;
    return e;
}
