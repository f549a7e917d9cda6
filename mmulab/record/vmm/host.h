/* The recording host: files, modules, what goes out (out.c), the trace; and the VMM that it runs (scenario.c). */
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
void put_parts(int kind, const void *first, u32 first_bytes, const void *second, u32 second_bytes);
void send_file(const char *name, const char *path);
char *next_job(void);
struct link;
void use_link(const struct link *link);
void note(int kind, const char *format, ...) __attribute__((format(printf, 2, 3)));
void power_off(void) __attribute__((noreturn));
int write_file(const char *path, const char *text);
char *read_file(const char *path);
void each_line(const char *folder, const char *name, void (*each)(char *line));
void load_module(char *line);

/* The kernel's trace (tracing.c), in this folder and with probes of this group. */
extern char trace_folder[64], probe_group[32];
void start_tracing(const char *folder, int cpu);
void open_trace(void);
int write_trace(const char *name, const char *text);
void drain_trace(int send);

/* What makes a scenario impossible ends this host; the next scenario gets a fresh boot. */
#define die(...) do { note(REC_ERROR, __VA_ARGS__); power_off(); } while (0)

/* Settings of the whole machine, with those of one CPU (quiet.c). */
void save_settings(int cpu);
void restore_settings(int cpu);
void keep_quiet(int cpu);

/* A machine that was not booted for it (own_host.c), and what is done there as here (serve.c). */
int own_host(int count, char **arg);
void record_on(const char *folder, int cpu) __attribute__((noreturn));

void open_kvm(void);
void run_scenario(char *text);

#endif
