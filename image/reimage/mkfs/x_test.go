package mkfs
const testUUID = "5b6f0a3e-4c57-4a1c-9a55-0d9c8f1f7a10"
