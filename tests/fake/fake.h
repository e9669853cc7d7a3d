/* fake.h - what the two halves of the fake engine agree on; how to use it is in
 * fake_engine.c. */
#ifndef BATCHD_TESTS_FAKE_FAKE_H
#define BATCHD_TESTS_FAKE_FAKE_H

enum { FAKE_BOS = 256, FAKE_EOS = 257, FAKE_VOCAB = 258, FAKE_CONTEXT = 4096 };

#endif
