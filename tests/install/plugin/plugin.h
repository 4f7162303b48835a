/* What a plugin offers to its host. */
#ifndef PLUGIN_H
#define PLUGIN_H

/* Uses libdualpipe; ends the process if anything is wrong. Any thread, several at once. */
void plugin_run(void);

/* The file in which the plugin's libdualpipe is; valid while that is mapped. */
const char *plugin_library(void);

#endif
