/* What the recording host (init.c) gives to the VMM (scenario.c), and takes from it. */
#ifndef HOST_H
#define HOST_H

#include <stdint.h>

typedef uint64_t u64;
typedef uint32_t u32;
typedef uint16_t u16;
typedef uint8_t u8;

#define PAGE 4096ull
#define TRACING "/sys/kernel/tracing/"

/* Records on the link: kind, bytes, payload padded to 8. */
enum {
	REC_FILE = 'F', REC_READY = 'R', REC_BEGIN = 'B', REC_OUTCOME = 'L', REC_TRACE = 'T',
	REC_FRAMES = 'P', REC_TOTAL = 'S', REC_NOTE = 'W', REC_ERROR = 'X', REC_DONE = 'D', REC_CPUID = 'C',
};

void put(int kind, const void *data, u32 bytes);
void note(int kind, const char *format, ...) __attribute__((format(printf, 2, 3)));
void power_off(void) __attribute__((noreturn));
int write_file(const char *path, const char *text);
int write_trace(const char *name, const char *text);
void drain_trace(int send);
void load_module(char *line);

/* What makes a scenario impossible ends this host; the next scenario gets a fresh boot. */
#define die(...) do { note(REC_ERROR, __VA_ARGS__); power_off(); } while (0)

/* Settings of the whole machine, with those of one CPU (quiet.c). */
void save_settings(int cpu);
void restore_settings(int cpu);
void keep_quiet(int cpu);

/* A machine that was not booted for it (own_host.c): where it is traced, and what init.c does there too. */
extern char trace_folder[64], probe_group[32];
int own_host(int count, char **arg);
char *read_file(const char *path);
void record_on(const char *folder, int cpu) __attribute__((noreturn));

void open_kvm(void);
void run_scenario(char *text);

#endif
