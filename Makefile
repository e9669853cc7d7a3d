# batchd's build. One Makefile, no recursion; `make help` lists the targets.
#
#   make            build/batchd and build/batchd_sqlite.so
#   make V=asan     the same under build/asan, with ASan and UBSan (V=tsan: TSan)

# On all processors, unless it was said otherwise; a make within this one shares its jobs.
ifeq ($(MAKELEVEL)$(filter -j%,$(MAKEFLAGS)),0)
  MAKEFLAGS += -j$(shell nproc 2>/dev/null || echo 1)
endif

V      ?=
CC     ?= cc
PREFIX ?= /usr/local
BUILD  := build$(if $(V),/$(V))

CSTD   := -std=c17 -D_GNU_SOURCE
WARN   := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
          -Wundef -Wvla -Wno-unused-parameter $(if $(CI),-Werror)
OPT    := -O2 -g
ifeq ($(V),asan)
  OPT  := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
else ifeq ($(V),tsan)
  OPT  := -O1 -g -fno-omit-frame-pointer -fsanitize=thread
else ifneq ($(V),)
  $(error V=$(V) is not a variant: asan, tsan or nothing)
endif

# One short line a file; VERBOSE=1 shows the commands.
Q    := $(if $(VERBOSE),,@)
SAY   = @$(if $(VERBOSE),:,printf '  %-5s %s\n')

comma := ,

# Where git does not say it, for instance to root in a user's folder, it stays what it was.
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || cat $(BUILD)/obj/version.said 2>/dev/null || echo unknown)

CPPFLAGS += -I. -MMD -MP $(if $(V),-DMEM_GUARD)
CFLAGS   += $(CSTD) $(WARN) $(OPT) -fPIC -ffp-contract=off
LDFLAGS  += $(filter -fsanitize%,$(OPT)) -Wl,--as-needed

# ---------------------------------------------------------------- sources

BASE_SRC    := $(wildcard base/*.c)
KERNELS_SRC := $(wildcard kernels/*.c kernels/cpu/*.c)
SIMD_SRC    := $(wildcard kernels/cpu/simd/*.c)
ENGINE_SRC  := $(wildcard engine/*.c engine/*/*.c)
JOBS_SRC    := $(wildcard jobs/*.c jobs/sqlite_ext/*.c)
BATCHD_SRC  := $(wildcard batchd/*.c)
EXT_SRC     := $(wildcard jobs/sqlite_ext/*.c)
EXT_OBJ     := $(patsubst %.c,$(BUILD)/obj/%.ext.o,$(EXT_SRC))

obj = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))

# kernels/cpu/simd is compiled once per instruction set; the device picks one when it is opened.
# How vectors are passed without AVX (psabi) is of no concern: those functions are all inlined.
ifeq ($(shell uname -m),x86_64)
  SIMD_VARIANTS := v2 v3 v4
  SIMD_FLAGS_v2 := -march=x86-64-v2
  SIMD_FLAGS_v3 := -march=x86-64-v3
  SIMD_FLAGS_v4 := -march=x86-64-v4 -mprefer-vector-width=512
else
  SIMD_VARIANTS := plain
endif
SIMD_OPT := -Wno-psabi $(if $(V),,-O3)
SIMD_OBJ := $(foreach v,$(SIMD_VARIANTS),$(patsubst %.c,$(BUILD)/obj/%.$(v).o,$(SIMD_SRC)))

# ---------------------------------------------------------------- CUDA, where nvcc is there
#
#   make CUDA=0          the program for the CPU alone
#   make ARCH=90a        for one kind of GPU; "75 90a" for two; 75ptx: code that newer cards compile
#                        when it is loaded; all. By default the GPU that is present, else 75 and its PTX

NVCC := $(firstword $(wildcard $(shell command -v nvcc 2>/dev/null) /usr/local/cuda/bin/nvcc))
CUDA ?= $(if $(and $(NVCC),$(wildcard /dev/nvidiactl)),1,0)
ARCH ?= $(if $(wildcard /dev/nvidiactl),native,75 75ptx)
CUDA_SRC := $(wildcard kernels/cuda/*.cu)
CUDA_OBJ := $(patsubst %.cu,build/obj/%.o,$(CUDA_SRC))
# Hopper's own instructions need the "a".
NATIVE = $(patsubst 90,90a,$(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .))
ARCHES := $(patsubst native,$(if $(filter native,$(ARCH)),$(NATIVE)),$(patsubst all,75 80 86 89 90a 100 120 120ptx,$(ARCH)))
gencode = -gencode=arch=compute_$(1:ptx=)$(comma)code=$(if $(filter %ptx,$(1)),compute_$(1:ptx=),sm_$(1))
NVCC_ARCH := $(foreach a,$(ARCHES),$(call gencode,$(a)))
NVCC_FLAGS := -std=c++17 -O3 -I. -MMD -MP $(NVCC_ARCH) -Xcompiler=-fPIC,-Wall$(if $(CI),$(comma)-Werror)
CUDA_LIBS = -L$(dir $(NVCC))../lib64 -L$(dir $(NVCC))../targets/x86_64-linux/lib -lcublasLt -lcudart

LIBS := -lsqlite3 -lzstd -lcsv -ljansson -lpcre2-8 -lutf8proc -lcrypto -lm -lpthread -ldl

# ---------------------------------------------------------------- what is built

.DEFAULT_GOAL := all
.PHONY: always all cuda test-gpu test-gpu-sanitize deps demo test all-tests check bench fuzz-chat tokenizer-vectors layers man install uninstall help clean

CUDA_LIBRARY := build/libbatchd_cuda.so
PROGRAM   := $(if $(wildcard batchd/main.c),$(BUILD)/batchd)
EXTENSION := $(if $(EXT_SRC),$(BUILD)/batchd_sqlite.so)

all: $(PROGRAM) $(EXTENSION) $(if $(filter 1,$(CUDA)),$(if $(V),,$(CUDA_LIBRARY)))

# The program opens it at run time and takes what it shares with it from the program.
cuda: $(CUDA_LIBRARY)

build/obj/%.o: %.cu
	@mkdir -p $(@D)
	$(SAY) NVCC $<
	$(Q)$(NVCC) $(NVCC_FLAGS) -c $< -o $@

$(CUDA_LIBRARY): $(CUDA_OBJ)
	$(SAY) LD $@
	$(Q)$(NVCC) -shared $(NVCC_ARCH) -cudart shared $^ $(CUDA_LIBS) -o $@

ARCHIVES := $(addprefix $(BUILD)/lib,$(addsuffix .a,jobs engine kernels base))

$(BUILD)/libbase.a:    $(call obj,$(BASE_SRC))
$(BUILD)/libkernels.a: $(call obj,$(KERNELS_SRC)) $(SIMD_OBJ)
$(BUILD)/libengine.a:  $(call obj,$(ENGINE_SRC))
$(BUILD)/libjobs.a:    $(call obj,$(JOBS_SRC))
$(BUILD)/libbatchd.a:  $(call obj,$(filter-out batchd/main.c batchd/version.c,$(BATCHD_SRC)))

$(BUILD)/lib%.a:
	$(SAY) AR $@
	@rm -f $@
	$(Q)$(AR) rcs $@ $^

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(SAY) CC $<
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(EXTRA_$(basename $(notdir $<))) -c $< -o $@

EXTRA_batchd_sqlite := -DSQLITE_CORE
# The version goes into one object alone, and that into the programs alone, so that a commit
# rebuilds neither the tree nor the tests.
EXTRA_version := -DBATCHD_VERSION='"$(VERSION)"'
# Where `make install` puts things; a program in its build tree looks beside itself first.
EXTRA_paths := -DBATCHD_PREFIX='"$(PREFIX)"'

# What these two were made with: a file that changes when it does.
SAID_version := $(VERSION)
SAID_paths   := $(PREFIX)
$(call obj,batchd/version.c): $(BUILD)/obj/version.said
$(call obj,batchd/paths.c): $(BUILD)/obj/paths.said
$(BUILD)/obj/%.said: always
	@mkdir -p $(@D)
	@echo '$(SAID_$*)' | cmp -s - $@ || echo '$(SAID_$*)' >$@

define SIMD_RULE
$(BUILD)/obj/%.$(1).o: %.c
	@mkdir -p $$(@D)
	$$(SAY) CC '$$< ($(1))'
	$$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) $(SIMD_OPT) $(SIMD_FLAGS_$(1)) -DSIMD_VARIANT=$(1) -c $$< -o $$@
endef
$(foreach v,$(SIMD_VARIANTS),$(eval $(call SIMD_RULE,$(v))))

$(BUILD)/batchd: $(call obj,batchd/main.c batchd/version.c) $(BUILD)/libbatchd.a $(ARCHIVES)
	$(SAY) LD $@
	$(Q)$(CC) $(LDFLAGS) -rdynamic $^ $(LIBS) -o $@

# store.c carries schema.sql inside.
$(BUILD)/obj/jobs/store.o: schema.sql

# The SQL functions: once inside the program (SQLITE_CORE), once as a loadable extension, which
# links libzstd alone; the sqlite3 that loads it brings the rest. SQLite derives the entry
# point's name from the file's name.
$(BUILD)/obj/jobs/sqlite_ext/%.ext.o: jobs/sqlite_ext/%.c
	@mkdir -p $(@D)
	$(SAY) CC $<
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -c $< -o $@

ifeq ($(V),)
$(BUILD)/batchd_sqlite.so: $(EXT_OBJ) $(BUILD)/libjobs.a $(BUILD)/libbase.a
	$(SAY) LD $@
	$(Q)$(CC) $(LDFLAGS) -shared -Wl,-Bsymbolic $^ -lzstd -o $@
else # the stock sqlite3 cannot load a library with a sanitizer in it
$(BUILD)/batchd_sqlite.so: $(EXT_SRC) $(JOBS_SRC) $(BASE_SRC) schema.sql
	@$(MAKE) --no-print-directory V= build/batchd_sqlite.so
	@mkdir -p $(@D) && cp build/batchd_sqlite.so $@
endif

# ---------------------------------------------------------------- tests

UNIT_TESTS := $(patsubst tests/%.c,$(BUILD)/tests/%,$(wildcard tests/test_*.c))
BATS_TESTS := $(wildcard tests/e2e/*.bats)
TEST_AIDS  := $(call obj,$(wildcard tests/aid_*.c))

# Tests of the queue run against the fake engine, a second implementation of engine/engine.h.
FAKE_OBJ     := $(call obj,$(wildcard tests/fake/*.c engine/sample/*.c \
                 engine/model/folder_files.c engine/model/safetensors.c engine/model/json_members.c))
FAKE_PROGRAM := $(if $(PROGRAM),$(if $(FAKE_OBJ),$(BUILD)/tests/batchd-fake))
TEST_PROGRAMS := $(UNIT_TESTS) $(FAKE_PROGRAM)

$(UNIT_TESTS): $(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(TEST_AIDS) $(BUILD)/libbatchd.a $(ARCHIVES)
	@mkdir -p $(@D)
	$(SAY) LD $@
	$(Q)$(CC) $(LDFLAGS) -rdynamic $^ -lcmocka $(LIBS) -o $@

$(BUILD)/tests/bench_tokenizer: $(call obj,tests/bench/bench_tokenizer.c) $(ARCHIVES)
	@mkdir -p $(@D)
	$(SAY) LD $@
	$(Q)$(CC) $(LDFLAGS) $^ $(LIBS) -o $@

$(BUILD)/tests/batchd-fake: $(call obj,batchd/main.c batchd/version.c) $(BUILD)/libbatchd.a $(FAKE_OBJ) $(BUILD)/libjobs.a $(BUILD)/libbase.a
	@mkdir -p $(@D)
	$(SAY) LD $@
	$(Q)$(CC) $(LDFLAGS) -rdynamic $^ $(LIBS) -o $@

TEST_ENV := BATCHD_BUILD=$(BUILD) BATCHD_TEST_DATA=$(abspath $(or $(BATCHD_TEST_DATA),../shared/data))

check: layers all $(TEST_PROGRAMS)
	@$(TEST_ENV) BATCHD_QUICK=1 tests/run $(UNIT_TESTS) $(BATS_TESTS)

# A sanitizer looks for other faults than the long cases do, and is ten times slower.
all-tests: layers all $(TEST_PROGRAMS)
	@$(TEST_ENV) $(if $(V),BATCHD_QUICK=1) tests/run $(UNIT_TESTS) $(BATS_TESTS)

# Two makes, because what `deps` installs must be there before the second begins.
test: deps
	@$(MAKE) --no-print-directory all-tests

# On a machine with a GPU: operations against a plain reference, models against
# transformers, batch invariance. Needs nothing but what is in build/.
test-gpu:
	@$(TEST_ENV) BATCHD_TEST_DEVICE=cuda tests/run $(addprefix $(BUILD)/tests/test_,ops op_attention op_fp8 op_moe op_quant op_quant_load op_outliers op_fp8_rows op_fp8_blocks op_sample op_adjust profile roof forward model quantization fp8_blocks weight_cache engine invariance sampling steady)

# Bad accesses and races, where compute-sanitizer works; at most LIMIT=240 seconds.
test-gpu-sanitize:
	@$(TEST_ENV) scripts/gpu-sanitize $(BUILD) $(or $(LIMIT),240)

# RUNS texts a family, SEED says which, against the Python package `tokenizers`, where it is installed.
PYTHON ?= python3
tokenizer-vectors: all
	@$(PYTHON) tests/data/tokenizer/golden.py compare $(abspath $(or $(BATCHD_TEST_DATA),../shared/data)) $(BUILD)/batchd \
	  $(or $(RUNS),100000) $(or $(SEED),1)

# Chat templates: mutated ones, and, where Python has transformers and jinja2, generated ones, and
# generated conversations through those of models, against jinja2. RUNS and SEED say how many and which.
fuzz-chat: $(BUILD)/tests/test_chat
	BATCHD_FUZZ_RUNS=$(or $(RUNS),100000) BATCHD_FUZZ_SEED=$(or $(SEED),1) $< 'mutated*'
	@$(PYTHON) -c 'import transformers, jinja2' 2>/dev/null || { echo 'no transformers: nothing is compared'; exit 0; }; \
	  $(PYTHON) -W ignore tests/data/chat/fuzz.py $(or $(SEED),1) $$(( $(or $(RUNS),100000) / 50 )) >$(BUILD)/fuzz-chat.json && \
	  BATCHD_CHAT_CASES=$(BUILD)/fuzz-chat.json $< 'generated*' && \
	  $(PYTHON) -W ignore tests/data/chat/conversations.py $(abspath $(or $(BATCHD_TEST_DATA),../shared/data)) \
	    $(or $(SEED),1) $$(( $(or $(RUNS),100000) / 1000 )) >$(BUILD)/fuzz-chat.json && \
	  BATCHD_CHAT_CASES=$(BUILD)/fuzz-chat.json $< 'generated*'

# Mutated model files by the hundred thousand, under ASan; SEED=2 for others.
.PHONY: fuzz-tokenizer fuzz-config fuzz-safetensors
fuzz-tokenizer fuzz-config fuzz-safetensors:
	@$(MAKE) --no-print-directory V=asan build/asan/tests/test_hostile
	@BATCHD_FUZZ_RUNS=$(or $(RUNS),200000) BATCHD_FUZZ_SEED=$(or $(SEED),2) build/asan/tests/test_hostile $(FUZZ_CASE_$(@:fuzz-%=%))
FUZZ_CASE_tokenizer := tokenizers
FUZZ_CASE_config := configs
FUZZ_CASE_safetensors := checkpoints

layers:
	@tests/layers

# ---------------------------------------------------------------- everything else

deps:
	@scripts/deps

demo: deps
	@$(MAKE) --no-print-directory all
	@scripts/demo $(BUILD)

bench: all
	@scripts/bench $(BUILD)

# The manual page is what `batchd help` says.
man: $(BUILD)/batchd.1

$(BUILD)/batchd.1: scripts/manual $(BUILD)/batchd
	$(SAY) MAN $@
	@scripts/manual $(BUILD)/batchd >$@.part && mv $@.part $@

install: all man
	install -D -m 755 $(BUILD)/batchd $(DESTDIR)$(PREFIX)/bin/batchd
	install -D -m 755 $(BUILD)/batchd_sqlite.so $(DESTDIR)$(PREFIX)/lib/batchd/batchd_sqlite.so
	if [ -e $(CUDA_LIBRARY) ]; then \
	  install -D -m 755 $(CUDA_LIBRARY) $(DESTDIR)$(PREFIX)/lib/batchd/libbatchd_cuda.so; fi
	install -D -m 644 $(BUILD)/batchd.1 $(DESTDIR)$(PREFIX)/share/man/man1/batchd.1

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/batchd $(DESTDIR)$(PREFIX)/lib/batchd/batchd_sqlite.so
	rm -f $(DESTDIR)$(PREFIX)/lib/batchd/libbatchd_cuda.so
	rm -f $(DESTDIR)$(PREFIX)/share/man/man1/batchd.1
	-rmdir $(DESTDIR)$(PREFIX)/lib/batchd 2>/dev/null

clean:
	rm -rf build

help:
	@echo 'make              build/batchd and build/batchd_sqlite.so'
	@echo 'make deps         install the Debian packages that are missing'
	@echo 'make demo         a CSV of small tasks through the demo model, with reports'
	@echo 'make check        tests that take seconds'
	@echo 'make test         all tests; V=asan or V=tsan under a sanitizer'
	@echo 'make cuda         build/libbatchd_cuda.so; ARCH="75 90a" ... for other GPUs than this one'
	@echo 'make test-gpu     kernels and engine on the GPU'
	@echo 'make test-gpu-sanitize  bad accesses and races there; LIMIT=240 seconds'
	@echo 'make bench        speed of the engine on this machine'
	@echo 'make fuzz-tokenizer  mutated files under ASan; fuzz-config, fuzz-safetensors; RUNS=200000 SEED=2'
	@echo 'make tokenizer-vectors  texts through each tokenizer and the Python package tokenizers; RUNS=100000 SEED=1'
	@echo 'make fuzz-chat    chat templates: mutated, and against jinja2; RUNS=100000 SEED=1'
	@echo 'make layers       check which folder includes which'
	@echo 'make man          build/batchd.1, the manual page'
	@echo 'make install      PREFIX=/usr/local, DESTDIR= ; make uninstall'
	@echo 'make clean'

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
