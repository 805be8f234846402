/*
 * The EFI test application: tells on the console what a firmware offers, and does what a short script says.
 *
 * It is the BOOTX64.EFI of efi-app.raw. The script is, the first that is there: what follows "efi-app:" in one of the OEM strings of the VM's
 * SMBIOS; the file \efi-app.txt on the volume that the application comes from; DEFAULT_SCRIPT in script.c. Commands are listed there.
 *
 * Each start is counted in the variable PaddockBoots. Lines for tests to wait for:
 *   EFI-APP-START boots=N          before the script is run
 *   EFI-APP-OK boots=N             before the machine is reset or powered off, if everything went well
 *   EFI-APP-FAILED boots=N ...     at once, for each thing that did not, and once more before the end
 */
#include "app.h"

EFI_HANDLE image;
EFI_HANDLE volume;
BOOLEAN boot_services = TRUE;
UINT32 boots;

void verdict(void)
{
	if (failures)
		say(L"EFI-APP-FAILED boots=%d failures=%d", boots, failures);
	else
		say(L"EFI-APP-OK boots=%d", boots);
}

void end(EFI_RESET_TYPE how)
{
	verdict();
	RT->ResetSystem(how, EFI_SUCCESS, 0, NULL);
	say(L"EFI-APP-FAILED boots=%d ResetSystem has returned", boots);
	for (;;)
		__asm__ volatile("cli; hlt");
}

/* The memory map may change between the two calls, as the specification says: then once more. */
void leave_boot_services(void)
{
	static UINT8 map[32 * 1024] __attribute__((aligned(16)));
	EFI_STATUS status = EFI_SUCCESS;

	for (int attempt = 0; attempt < 4; attempt++) {
		UINTN size = sizeof map, key, descriptor;
		UINT32 version;

		status = BS->GetMemoryMap(&size, (EFI_MEMORY_DESCRIPTOR *)map, &key, &descriptor, &version);
		if (EFI_ERROR(status))
			break;
		status = BS->ExitBootServices(image, key);
		if (!EFI_ERROR(status)) {
			__asm__ volatile("cli");
			boot_services = FALSE;
			say(L"EFI-APP boot services left");
			return;
		}
	}
	fail(L"cannot leave boot services: %r", status);
}

/* gnu-efi's start-up code calls it by its own convention. */
EFI_STATUS efi_main(EFI_HANDLE handle, EFI_SYSTEM_TABLE *table)
{
	EFI_LOADED_IMAGE *loaded;

	image = handle;
	InitializeLib(handle, table);
	if (!EFI_ERROR(BS->HandleProtocol(image, &LoadedImageProtocol, (void **)&loaded)))
		volume = loaded->DeviceHandle;
	/* The firmware would reset the machine five minutes after it has started a boot entry. */
	BS->SetWatchdogTimer(0, 0, 0, NULL);
	count_boots();
	say(L"EFI-APP-START boots=%d", boots);
	run_script();
	return EFI_NOT_FOUND;
}
