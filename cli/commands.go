package cli

import (
	"github.com/spf13/cobra"

	"github.com/hauberk-mesh/hauberk/cli/check"
	"github.com/hauberk-mesh/hauberk/cli/convert"
	"github.com/hauberk-mesh/hauberk/cli/flows"
	"github.com/hauberk-mesh/hauberk/cli/identity"
	"github.com/hauberk-mesh/hauberk/cli/inject"
	"github.com/hauberk-mesh/hauberk/cli/node"
	"github.com/hauberk-mesh/hauberk/cli/proxy"
	"github.com/hauberk-mesh/hauberk/cli/run"
	"github.com/hauberk-mesh/hauberk/cli/setup"
	"github.com/hauberk-mesh/hauberk/cli/status"
	"github.com/hauberk-mesh/hauberk/cli/verdict"
)

// commands are the sub-commands, in the order of help.
var commands = []func(*run.Env) *cobra.Command{
	setup.Install(check.Verify),
	setup.Upgrade(check.Verify),
	setup.Uninstall,
	setup.Manifest,
	check.Command,
	status.Command,
	inject.Command,
	inject.Uninject,
	verdict.Command,
	verdict.Analyze,
	convert.Command,
	flows.Command,
	node.Command,
	proxy.Command,
	identity.Command,
}
