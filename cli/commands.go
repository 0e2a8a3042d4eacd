package cli

import (
	"github.com/spf13/cobra"

	"github.com/hauberk-mesh/hauberk/cli/run"
)

// commands are the sub-commands, in the order of help.
var commands = []func(*run.Env) *cobra.Command{}
