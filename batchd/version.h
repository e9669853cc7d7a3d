/* version.h - what `git describe` said when the program was built. */
#ifndef BATCHD_BATCHD_VERSION_H
#define BATCHD_BATCHD_VERSION_H

extern const char VERSION_TEXT[];

#endif
