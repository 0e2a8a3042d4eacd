package run

// OutputVersion is the version of JSON and YAML output: fields are added to it,
// never renamed or taken away.
const OutputVersion = "cli.hauberk.dev/v1"
