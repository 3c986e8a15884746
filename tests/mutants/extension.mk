# Builds ksmpy/_ksmpy*.so in the current folder, a copy of the tree: compiles only what has changed,
# and in a hurry.  PYTHON and SUFFIX come from whoever calls it.

OUT := build/extension
CFLAGS := -std=c11 -O1 -fPIC -pthread -fvisibility=hidden -w -D_GNU_SOURCE -Icsrc
OBJECTS := $(patsubst csrc/%.c,$(OUT)/%.o,$(wildcard csrc/*/*.c)) $(OUT)/_ksmpy.o

ksmpy/_ksmpy$(SUFFIX): $(OBJECTS)
	$(CC) -shared -pthread $^ -o $@

$(OUT)/%.o: csrc/%.c $(wildcard csrc/*.h csrc/*/*.h)
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) -c $< -o $@

$(OUT)/_ksmpy.o: $(OUT)/_ksmpy.c $(wildcard csrc/*.h csrc/*/*.h)
	$(CC) $(CFLAGS) -I$(INCLUDE) -c $< -o $@

$(OUT)/_ksmpy.c: csrc/build_ffi.py csrc/ksmpy.cdef.h | $(OUT)
	$(PYTHON) -c 'import sys; sys.path.insert(0, "csrc"); import build_ffi; build_ffi.ffi.emit_c_code("$@")'

$(OUT):
	mkdir -p $@
