/* What the files of the EFI test application share; main.c says what it is. */
#pragma once

#include <efi.h>
#include <efilib.h>

/* output.c: lines on the firmware's console; once boot services are left, on the first serial port. Formats are gnu-efi's. */
void say(const CHAR16 *format, ...);
void fail(const CHAR16 *format, ...); /* likewise, and the run has failed */
extern UINTN failures;

/* main.c */
extern EFI_HANDLE image;         /* the application's own */
extern EFI_HANDLE volume;        /* the file system that it was loaded from, or NULL */
extern BOOLEAN boot_services;    /* not left yet */
extern UINT32 boots;             /* how often the application was started with this variable store, this time included */
void leave_boot_services(void);
__attribute__((noreturn)) void end(EFI_RESET_TYPE how);
void verdict(void);

/* variables.c: variables of the application's own vendor GUID, which survive a reset. */
void count_boots(void);
void set_variable(const CHAR8 *name, const CHAR8 *value);
void get_variable(const CHAR8 *name);
void expect_variable(const CHAR8 *name, const CHAR8 *value);
void delete_variable(const CHAR8 *name);
void churn(UINTN count);
void check_churn(void);

/* info.c: what the firmware offers; all of it needs boot services. */
void tell_all(void);
void connect_all(void);
void read_blocks(UINTN mebibytes);
void tell_path(const CHAR16 *what, EFI_HANDLE handle);

/* boot.c: the firmware's boot entries; needs boot services. */
void tell_boot(void);
void boot_next(const CHAR8 *part);

/* smbios.c */
void tell_smbios(void);
const CHAR8 *oem_string(const CHAR8 *prefix); /* what follows the prefix in the first OEM string that has it, or NULL */

/* script.c */
void run_script(void);
