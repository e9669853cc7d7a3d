/* messages.h - what a conversation in a JSONL line must look like. */
#ifndef BATCHD_JOBS_MESSAGES_H
#define BATCHD_JOBS_MESSAGES_H

#include <jansson.h>

/* NULL where `messages` is a list of messages that a chat template may be given; else what
 * is wrong with it, and in *code the code of the reject. Each message has a role; its content
 * is a string, a list of parts of text, or null beside something else, such as tool_calls. */
const char *messages_problem(const json_t *messages, const char **code);

/* The same for what stands beside the messages: tools, documents, chat_template_kwargs. */
const char *messages_extras_problem(const json_t *row, const char **code);

/* Is this a key that only the chat template reads? */
int messages_is_extra(const char *key);

#endif
