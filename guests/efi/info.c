/* What the firmware offers: itself, memory, CPUs, tables, block devices, NICs. */
#include "app.h"

#define LIST_LIMIT 400
#define READ_BYTES (64 * 1024)

static EFI_GUID mp_services = { 0x3fdda605, 0xa76e, 0x4f46, { 0xad, 0x29, 0x12, 0xf4, 0x53, 0x1b, 0x3d, 0x08 } };

/* The part of EFI_MP_SERVICES_PROTOCOL that is used; gnu-efi does not have it. */
struct mp_services {
	EFI_STATUS(EFIAPI *get_number)(struct mp_services *this, UINTN *all, UINTN *enabled);
};

void tell_path(const CHAR16 *what, EFI_HANDLE handle)
{
	EFI_DEVICE_PATH *path = handle ? DevicePathFromHandle(handle) : NULL;
	CHAR16 *text = path ? DevicePathToStr(path) : NULL;

	say(L"EFI-APP %s %s", what, text ? text : L"?");
	if (text)
		FreePool(text);
}

static void tell_memory(void)
{
	UINTN count, key, size;
	UINT32 version;
	UINT64 pages = 0, top = 0;
	EFI_MEMORY_DESCRIPTOR *map = LibMemoryMap(&count, &key, &size, &version), *entry = map;

	if (!map) {
		fail(L"there is no memory map");
		return;
	}
	for (UINTN index = 0; index < count; index++, entry = NextMemoryDescriptor(entry, size)) {
		UINT64 entry_end = entry->PhysicalStart + entry->NumberOfPages * EFI_PAGE_SIZE;

		if (entry->Type == EfiReservedMemoryType || entry->Type == EfiUnusableMemory || entry->Type >= EfiMemoryMappedIO)
			continue;
		pages += entry->NumberOfPages;
		if (entry_end > top)
			top = entry_end;
	}
	FreePool(map);
	say(L"EFI-APP memory usable=%ldMiB end=0x%lx", pages * EFI_PAGE_SIZE >> 20, top);
}

static void tell_cpus(void)
{
	struct mp_services *services;
	UINTN all, enabled;

	if (EFI_ERROR(LibLocateProtocol(&mp_services, (void **)&services)) || EFI_ERROR(services->get_number(services, &all, &enabled)))
		say(L"EFI-APP cpus unknown");
	else
		say(L"EFI-APP cpus=%d enabled=%d", all, enabled);
}

/* The signatures of the tables that the XSDT points to, and whether each sums up to zero. */
static void tell_acpi(void)
{
	EFI_GUID guid = ACPI_20_TABLE_GUID;
	CHAR16 list[LIST_LIMIT] = L"";
	UINT8 *rsdp, *xsdt;

	if (EFI_ERROR(LibGetSystemConfigurationTable(&guid, (void **)&rsdp))) {
		say(L"EFI-APP acpi is not there");
		return;
	}
	xsdt = (UINT8 *)*(UINTN *)(rsdp + 24);
	for (UINTN offset = 36; offset + 8 <= *(UINT32 *)(xsdt + 4); offset += 8) {
		UINT64 address;
		UINT8 *entry, sum = 0;

		CopyMem(&address, xsdt + offset, sizeof address);
		entry = (UINT8 *)(UINTN)address;
		for (UINT32 index = 0; index < *(UINT32 *)(entry + 4); index++)
			sum += entry[index];
		if (sum)
			fail(L"the ACPI table at 0x%lx has a wrong checksum", address);
		if (StrLen(list) + 6 < LIST_LIMIT)
			SPrint(list + StrLen(list), 6 * sizeof *list, L" %c%c%c%c", entry[0], entry[1], entry[2], entry[3]);
	}
	say(L"EFI-APP acpi%s", list);
}

/* Every instance of a protocol, and its handle. */
static UINTN handles(EFI_GUID *protocol, EFI_HANDLE **found)
{
	UINTN count = 0;

	*found = NULL;
	return EFI_ERROR(BS->LocateHandleBuffer(ByProtocol, protocol, NULL, &count, found)) ? 0 : count;
}

static void tell_blocks(void)
{
	EFI_HANDLE *found;
	UINTN count = handles(&BlockIoProtocol, &found);

	say(L"EFI-APP blocks=%d", count);
	for (UINTN index = 0; index < count; index++) {
		EFI_BLOCK_IO *block;
		CHAR16 name[16];

		if (EFI_ERROR(BS->HandleProtocol(found[index], &BlockIoProtocol, (void **)&block)))
			continue;
		SPrint(name, sizeof name, L"block %d", index);
		say(L"EFI-APP %s blocks=%ld of=%d present=%d ro=%d removable=%d partition=%d", name,
		    block->Media->MediaPresent ? block->Media->LastBlock + 1 : 0, block->Media->BlockSize, block->Media->MediaPresent,
		    block->Media->ReadOnly, block->Media->RemovableMedia, block->Media->LogicalPartition);
		tell_path(name, found[index]);
	}
	if (found)
		FreePool(found);
}

static EFI_SIMPLE_NETWORK *nic(EFI_HANDLE handle)
{
	EFI_SIMPLE_NETWORK *nic;

	return EFI_ERROR(BS->HandleProtocol(handle, &SimpleNetworkProtocol, (void **)&nic)) ? NULL : nic;
}

/* By their MAC addresses, each once: what is built on a NIC, such as its boot from the network, has the protocol as well. */
static void tell_nics(void)
{
	EFI_HANDLE *found;
	UINTN count = handles(&SimpleNetworkProtocol, &found);

	for (UINTN index = 0; index < count; index++) {
		EFI_SIMPLE_NETWORK *one = nic(found[index]), *other = NULL;
		UINT8 *mac;

		for (UINTN before = 0; one && before < index && !other; before++) {
			other = nic(found[before]);
			if (other && CompareMem(&one->Mode->CurrentAddress, &other->Mode->CurrentAddress, sizeof(EFI_MAC_ADDRESS)))
				other = NULL;
		}
		if (!one || other)
			continue;
		mac = one->Mode->CurrentAddress.Addr;
		say(L"EFI-APP nic %02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
	}
	if (found)
		FreePool(found);
}

/* Has every driver look at every device; a firmware that knows what to boot only does so for that. */
void connect_all(void)
{
	EFI_HANDLE *found = NULL;
	UINTN count = 0;

	if (EFI_ERROR(BS->LocateHandleBuffer(AllHandles, NULL, NULL, &count, &found))) {
		fail(L"connect: there are no handles");
		return;
	}
	for (UINTN index = 0; index < count; index++)
		BS->ConnectController(found[index], NULL, NULL, TRUE);
	FreePool(found);
}

static void tell_secure_boot(void)
{
	UINTN size;
	UINT8 *secure = LibGetVariableAndSize(L"SecureBoot", &EfiGlobalVariable, &size);
	UINT8 *setup = LibGetVariableAndSize(L"SetupMode", &EfiGlobalVariable, &size);

	if (secure && setup)
		say(L"EFI-APP secure-boot=%d setup-mode=%d", *secure, *setup);
	else
		say(L"EFI-APP secure-boot is not there");
	if (secure)
		FreePool(secure);
	if (setup)
		FreePool(setup);
}

static void tell_time(void)
{
	EFI_TIME time;
	EFI_STATUS status = RT->GetTime(&time, NULL);

	if (EFI_ERROR(status))
		fail(L"the time cannot be read: %r", status);
	else
		say(L"EFI-APP time %04d-%02d-%02dT%02d:%02d:%02d", time.Year, time.Month, time.Day, time.Hour, time.Minute, time.Second);
}

void tell_all(void)
{
	say(L"EFI-APP firmware \"%s\" revision=0x%x uefi=%d.%d", ST->FirmwareVendor, ST->FirmwareRevision, ST->Hdr.Revision >> 16,
	    (ST->Hdr.Revision & 0xFFFF) / 10);
	tell_memory();
	tell_cpus();
	tell_acpi();
	tell_smbios();
	tell_secure_boot();
	tell_time();
	tell_blocks();
	tell_nics();
	tell_boot();
}

/* The CRC-32 of the first bytes of each whole device, which the host can compare with its file. */
void read_blocks(UINTN mebibytes)
{
	EFI_HANDLE *found;
	UINTN count = handles(&BlockIoProtocol, &found);
	UINT64 want = (UINT64)mebibytes << 20;
	UINT8 *data = AllocatePool(want);

	if (!data) {
		fail(L"read: no memory for %d MiB", mebibytes);
		count = 0;
	}
	for (UINTN index = 0; index < count; index++) {
		EFI_BLOCK_IO *block;
		EFI_STATUS status = EFI_SUCCESS;
		UINT64 length, done;
		UINT32 sum = 0;

		if (EFI_ERROR(BS->HandleProtocol(found[index], &BlockIoProtocol, (void **)&block)) || block->Media->LogicalPartition ||
		    !block->Media->MediaPresent)
			continue;
		length = (block->Media->LastBlock + 1) * block->Media->BlockSize;
		if (length > want)
			length = want - want % block->Media->BlockSize;
		for (done = 0; done < length && !EFI_ERROR(status); done += READ_BYTES) {
			UINTN now = length - done < READ_BYTES ? length - done : READ_BYTES;

			status = block->ReadBlocks(block, block->Media->MediaId, done / block->Media->BlockSize, now, data + done);
		}
		if (EFI_ERROR(status)) {
			fail(L"read: block %d: %r", index, status);
			continue;
		}
		BS->CalculateCrc32(data, length, &sum);
		say(L"EFI-APP read block %d bytes=%ld crc32=%08x", index, length, sum);
	}
	if (data)
		FreePool(data);
	if (found)
		FreePool(found);
}
